"""A chunk's digest names all that its bytes depend on, and nothing else; a finished one is used as far as that goes."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from sft.chat import fast_tokenizer
from sft.chat.tokenizer import ChatTokenizer, train_tokenizer
from sft.config.data import BuildConfig, SourceConfig
from sft.data.build import fingerprint, writer
from sft.data.build.build import build, collect_inputs
from sft.data.build.chunk import Chunk, ChunkResult, write_chunk
from sft.data.build.fingerprint import Inputs
from sft.data.build.worker import Ingredients, Worker

OF_CHUNKS = {BuildConfig: fingerprint._SETTINGS_OF_CHUNKS, SourceConfig: fingerprint._SOURCE_OF_CHUNKS}
BY_HASH = {"tokenizer", "evaluation_files"}
"""Settings that a digest knows by what the files hold."""
OF_HEADER = {"tokenizer_backend", "tokenizer_check_share"}
"""Settings that a chunk's header answers for."""
QUESTION = "A ferry leaves the northern harbour every forty minutes; how many crossings does it make before noon?"
ROWS: list[list[str]] = [
    ["How many apples?", "Four apples are left."],
    ["only a question"],
    ["Who is it?", "I cannot help with that. Ask jo.miller@acme-corp.com."],
    [QUESTION, "Eight."],
    ["long", "words and words " * 30],
    *([f"question {number}?", "yes", "and then?", "no"] for number in range(9)),
]


@pytest.fixture
def inputs(write_mixture: Callable[..., Any], tmp_path: Path) -> Inputs:
    """The inputs of two sources, the first of which is searched for near duplicates."""
    raw = write_mixture(alpha=ROWS, beta=[["b?", "c"]])
    (tmp_path / "quiz.txt").write_text(QUESTION)
    config = raw.config("sources.alpha.near_duplicates=0.7", f"evaluation_files=[{tmp_path / 'quiz.txt'}]")
    return collect_inputs(config, raw.recipes)


def chunk_of_rows() -> Chunk:
    rows = [(number, json.dumps({"turns": turns}).encode()) for number, turns in enumerate(ROWS)]
    return Chunk("alpha", "alpha.jsonl", rows, "chunk")


def chunk_digest(inputs: Inputs) -> str:
    return inputs.chunk_digest("alpha", inputs.files["alpha"][0])


def chunk_bytes(inputs: Inputs, folder: Path) -> bytes:
    """The finished chunk as it lies on disk, but for how much of it was compared with the reference."""
    result = Worker(inputs.config, inputs.recipes, inputs.tokenizer).run(chunk_of_rows())
    write_chunk(folder / "chunk", replace(result, checked_share=1.0))
    return (folder / "chunk").read_bytes()


def other_value(owner: type[Any], name: str, value: Any) -> Any:
    """Another value that the setting may have."""
    hint = get_type_hints(owner)[name]
    if get_origin(hint) is Literal:
        return next((choice for choice in get_args(hint) if choice != value), "another that comes later")
    kinds = {type(None): "en" if str in get_args(hint) else 7, dict: {"loud": True}}
    simple = {bool: lambda: not value, int: lambda: value + 1, float: lambda: value / 2, str: lambda: f"{value}x"}
    if isinstance(value, tuple):
        return (*value, "other")
    return simple[type(value)]() if type(value) in simple else kinds[type(value)]


def with_other(inputs: Inputs, owner: type[Any], name: str) -> Inputs:
    """The same files under a config of which one setting is another."""
    config = inputs.config
    if name == "sources":
        alone = {"alpha": config.sources["alpha"]}
        return replace(inputs, config=replace(config, sources=alone), files={"alpha": inputs.files["alpha"]})
    if owner is BuildConfig:
        return replace(inputs, config=replace(config, **{name: other_value(owner, name, getattr(config, name))}))
    source = config.sources["alpha"]
    changed = replace(
        source, **{name: 0.9 if name == "near_duplicates" else other_value(owner, name, getattr(source, name))}
    )
    return replace(inputs, config=replace(config, sources={**config.sources, "alpha": changed}))


FIELDS = [(owner, field.name) for owner in (BuildConfig, SourceConfig) for field in fields(owner)]
IN_DIGEST = [(owner, name) for owner, name in FIELDS if name in OF_CHUNKS[owner]]
ELSEWHERE = [(owner, name) for owner, name in FIELDS if name not in (*OF_CHUNKS[owner], *BY_HASH)]


def test_every_setting_of_units_is_one() -> None:
    assert len(IN_DIGEST) == sum(map(len, OF_CHUNKS.values()))


@pytest.mark.parametrize(("owner", "name"), IN_DIGEST, ids=[f"{o.__name__}.{n}" for o, n in IN_DIGEST])
def test_what_a_unit_depends_on_is_in_its_digest(owner: type[Any], name: str, inputs: Inputs) -> None:
    assert chunk_digest(with_other(inputs, owner, name)) != chunk_digest(inputs)


@pytest.mark.parametrize(("owner", "name"), ELSEWHERE, ids=[f"{o.__name__}.{n}" for o, n in ELSEWHERE])
def test_any_other_setting_leaves_a_unit_as_it_is(owner: type[Any], name: str, inputs: Inputs, tmp_path: Path) -> None:
    changed = with_other(inputs, owner, name)
    assert changed.config != inputs.config
    assert chunk_digest(changed) == chunk_digest(inputs)
    assert chunk_bytes(changed, tmp_path) == chunk_bytes(inputs, tmp_path)


def test_a_unit_is_another_one_if_nothing_is_searched_for_near_duplicates(inputs: Inputs) -> None:
    none = {name: replace(source, near_duplicates=None) for name, source in inputs.config.sources.items()}
    assert chunk_digest(replace(inputs, config=replace(inputs.config, sources=none))) != chunk_digest(inputs)


def edit_evaluation(inputs: Inputs) -> Inputs:
    Path(inputs.config.evaluation_files[0]).write_text(QUESTION.upper())
    return replace(inputs)


def edit_recipe(inputs: Inputs) -> Inputs:
    path = inputs.recipes / "alpha" / "convert.py"
    path.write_text(path.read_text() + "\n")
    return replace(inputs)


def edit_tokenizer(inputs: Inputs) -> Inputs:
    path = Path(inputs.config.out).with_name("other.json")
    path.write_text(train_tokenizer([QUESTION], 300).json)
    return replace(inputs, tokenizer=ChatTokenizer.load(path))


def edit_raw_file(inputs: Inputs) -> Inputs:
    (file,) = inputs.files["alpha"]
    return replace(inputs, files={**inputs.files, "alpha": [replace(file, sha256="0" * 64)]})


@pytest.mark.parametrize("edit", [edit_evaluation, edit_recipe, edit_tokenizer, edit_raw_file])
def test_another_file_is_another_unit(edit: Callable[[Inputs], Inputs], inputs: Inputs) -> None:
    before = chunk_digest(inputs)
    assert chunk_digest(edit(inputs)) != before


def test_the_recipe_of_another_source_is_none_of_a_unit_s(inputs: Inputs) -> None:
    before = chunk_digest(inputs)
    (inputs.recipes / "beta" / "convert.py").open("a").write("\n")
    assert chunk_digest(replace(inputs)) == before


# ------------------------------------------------------------------------------------------------ what a worker reads


class Recording:
    """Stands for a config and notes which of its settings are read."""

    def __init__(self, item: Any, read: set[str]) -> None:
        self._item, self._read = item, read

    def __getattr__(self, name: str) -> Any:
        self._read.add(name)
        return getattr(self._item, name)


class ReferenceAsFast:
    """A fast tokenizer that never errs."""

    def __init__(self, _: str, reference: Any) -> None:
        self.encode_flat = reference


def test_a_worker_reads_no_other_setting(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything switched on, and not one for nothing."""
    monkeypatch.setattr(fast_tokenizer, "FastTokenizer", ReferenceAsFast)
    source = replace(inputs.config.sources["alpha"], max_characters=10_000, weight=0.9, refusals="drop")
    source = replace(source, language="en", min_answer_characters=1, personal_data="redact", too_long="truncate")
    of_source: set[str] = set()
    of_build: set[str] = set()
    config = replace(inputs.config, tokenizer_backend="fastokens", sources={"alpha": source})
    expected = Ingredients.now(config, inputs.recipes, inputs.tokenizer)
    recorded: Any = Recording(replace(config, sources={"alpha": Recording(source, of_source)}), of_build)
    result: ChunkResult = Worker(recorded, inputs.recipes, None, expected).run(chunk_of_rows())
    assert min(len(result.documents), len(result.bands), len(result.rejected)) > 0
    assert of_build == {*OF_CHUNKS[BuildConfig], *BY_HASH, *OF_HEADER, "sources"}
    assert of_source == {*OF_CHUNKS[SourceConfig], "near_duplicates"}


# ------------------------------------------------------------------------------------------------ finished chunks


@pytest.mark.parametrize(
    ("first", "second", "is_made_again"),
    [
        (("fastokens", 0.0), ("fastokens", 0.0), False),
        (("fastokens", 0.0), ("fastokens", 1.0), True),
        (("fastokens", 0.0), ("tokenizers", 0.0), True),
        (("fastokens", 1.0), ("tokenizers", 0.0), False),
        (("tokenizers", 0.0), ("fastokens", 1.0), False),
        (("fastokens", 0.5), ("fastokens", 0.2), False),
    ],
)
def test_a_finished_unit_serves_a_build_that_asks_for_no_more_comparison(
    first: tuple[str, float], second: tuple[str, float], is_made_again: bool, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    def settings(choice: tuple[str, float]) -> list[str]:
        return [f"tokenizer_backend={choice[0]}", f"tokenizer_check_share={choice[1]}"]

    monkeypatch.setattr(fast_tokenizer, "FastTokenizer", ReferenceAsFast)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_documents", fail)
        with pytest.raises(KeyboardInterrupt):
            build(raw.config(*settings(first)), raw.recipes)
    made: list[str] = []
    original = Worker.run
    monkeypatch.setattr(Worker, "run", lambda self, chunk: made.append(chunk.name) or original(self, chunk))
    build(raw.config(*settings(second)), raw.recipes)
    assert len(made) == (13 if is_made_again else 0)  # of 60 and 25 rows in chunks of 7
