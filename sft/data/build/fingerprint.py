"""The inputs that determine the bytes of a build, and whether a folder holds that build already."""

import ast
import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sft.chat.tokenizer import ChatTokenizer
from sft.config.data import BuildConfig
from sft.data.build.worker import Ingredients
from sft.data.manifest import BuildInputs, EvaluationFile, RawFile, SourceInputs, TokenizerFacts
from sft.data.shards import Shards, token_type
from sft.data.sources.files import SourceFile
from sft.data.sources.recipe import CONVERT, recipe_digests
from sft.errors import ConfigError, DataError, listed
from sft.hashing import file_sha256, text_sha256
from sft.version import VERSION, versions_of

# Settings that do not change the bytes, or are recorded in another form (names of files, not their paths).
_NOT_CONTENT = {
    *("sources_dir", "tokenizer", "out", "workers", "chunk_timeout_s", "sources", "evaluation_files"),
    *("tokenizer_backend", "tokenizer_check_share"),
}
# Packages whose version may change a byte.
_LIBRARIES = (
    *("backports.zstd", "beautifulsoup4", "ftfy", "jinja2", "markdownify", "markupsafe", "msgspec"),
    *("numpy", "py3langid", "pyarrow", "tokenizers"),
)
MAX_SHOWN = 5
_CODE = Path(__file__).parents[2]
# The code that turns rows into packs; not the code that fetches files, shows, compares or verifies builds, or trains.
_DECIDES_BYTES = (
    "hashing.py",
    "chat/**/*.py",
    "data/*.py",
    *(f"data/{part}/*.py" for part in ("build", "dedup", "filters", "sources")),
)
_ONLY_FETCHES = ("fetch.py", "hub.py", "lockfile.py")
# Settings on which a chunk's documents depend; all others are applied to the whole corpus.
_SETTINGS_OF_CHUNKS = (
    *("seq_len", "seed", "system", "format", "supervise", "end_token", "evaluation_ngram_words", "max_row_bytes"),
)
_SOURCE_OF_CHUNKS = (
    *("system", "too_long", "switches", "repair", "language", "min_answer_characters", "max_characters"),
    *("refusals", "personal_data", "decontaminate", "weight"),
)


@dataclass(frozen=True)
class Inputs:
    """The inputs that determine the bytes of a build."""

    config: BuildConfig
    recipes: Path
    tokenizer: ChatTokenizer
    files: dict[str, list[SourceFile]]

    @property
    def source_names(self) -> list[str]:
        return list(self.files)

    @property
    def file_names(self) -> list[str]:
        return sorted({file.name for group in self.files.values() for file in group})

    @property
    def id_type(self) -> type[np.uint16] | type[np.uint32]:
        """The integer type of the token ids."""
        return token_type(self.tokenizer.num_ids)

    @cached_property
    def facts(self) -> BuildInputs:
        """The inputs as the manifest records them."""
        settings = dataclasses.asdict(self.config)
        evaluation = [Path(file) for file in self.config.evaluation_files]
        return BuildInputs(
            version=VERSION,
            made_with=made_with(),
            name=self.config.name,
            settings={key: value for key, value in settings.items() if key not in _NOT_CONTENT},
            evaluation_files=tuple(EvaluationFile(file.name, file_sha256(file)) for file in evaluation),
            tokenizer=TokenizerFacts(self.tokenizer.sha256, self.tokenizer.num_ids),
            sources={
                name: SourceInputs(
                    settings=dataclasses.asdict(self.config.sources[name]),
                    recipe=recipe_digests(self.recipes / name),
                    raw_files=tuple(RawFile(file.name, file.num_bytes, file.sha256) for file in group),
                )
                for name, group in self.files.items()
            },
        )

    @cached_property
    def digest(self) -> str:
        """A hash of all inputs; builds with equal digests have equal bytes."""
        return _digest(self.facts.to_json())

    def chunk_digest(self, source: str, file: SourceFile) -> str:
        """A hash of all inputs of a file's chunks; other sources and their settings do not change it."""
        facts, mine = self.facts, self.facts.sources[source]
        common = {key: facts.to_json()[key] for key in ("version", "made_with", "evaluation_files", "tokenizer")}
        settings = {key: facts.settings[key] for key in _SETTINGS_OF_CHUNKS}
        mine_settings = {key: mine.settings[key] for key in _SOURCE_OF_CHUNKS}
        near = any(item.near_duplicates is not None for item in self.config.sources.values())
        return _digest([common, settings, source, mine_settings, mine.recipe[CONVERT], near, file.name, file.sha256])

    @property
    def ingredients(self) -> Ingredients:
        """Hashes of the files that the workers load, taken at the start of the build."""
        recipes = {name: source.recipe for name, source in self.facts.sources.items()}
        evaluation = [file.sha256 for file in self.facts.evaluation_files]
        return Ingredients(self.facts.tokenizer.sha256, recipes, evaluation)


def _digest(facts: Any) -> str:
    return text_sha256(json.dumps(facts, sort_keys=True))


def made_with() -> dict[str, str]:
    """Versions of all code that determines the bytes, including a hash of sft's own."""
    return {"code_sha256": code_digest(_CODE), **versions_of(*_LIBRARIES)}


def code_digest(package: Path) -> str:
    """A hash of the code that determines the bytes, independent of its comments, docstrings and formatting."""
    files = sorted(path for pattern in _DECIDES_BYTES for path in package.glob(pattern))
    code = (f"{path.relative_to(package)} {_dump(path)}\n" for path in files if path.name not in _ONLY_FETCHES)
    return text_sha256("".join(code))


def _dump(path: Path) -> str:
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [statement for statement in node.body if not _is_text(statement)]
    return ast.dump(tree)


def _is_text(statement: ast.stmt) -> bool:
    """Whether a statement is only a text: a docstring, or the sentence below a field."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def published(out: Path, inputs: Inputs) -> Shards | None:
    """The finished build of these inputs, or None if the folder does not exist.

    Raises: ConfigError if the folder holds anything else.
    """
    wanted = inputs.digest  # computed now: the recipes on disk may change while the build runs
    if not out.exists():
        return None
    try:
        shards = Shards.open(out, check_hashes=False)
    except DataError as error:
        raise ConfigError(f"exists and is not a build ({error.what})", on=out, hint="name another out=…") from error
    if shards.manifest.inputs_digest != wanted:
        changed = list(_differences(shards.manifest.to_json(), inputs.facts.to_json(), ""))
        raise ConfigError(f"holds another build:{listed(changed, MAX_SHOWN)}", on=out, hint="name another out=…")
    return shards


def _differences(before: Any, now: Any, name: str) -> Iterator[str]:
    """One line for every input that differs, with both values."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in now:
            yield from _differences(before.get(key), now[key], f"{name}.{key}" if name else key)
        # The manifest holds results as well as inputs, so keys that only it has are compared for the sources alone.
        yield from (f"{name}.{key}: there, not here" for key in before if name == "sources" and key not in now)
    elif json.dumps(before) != json.dumps(now):
        yield f"{name}: {_short(before)} there, {_short(now)} here"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
