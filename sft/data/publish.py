"""The last stage of a build: split, pack, write shards, documents, data-set card and manifest."""

import dataclasses
import importlib.metadata
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft.chat.tokenizer import ChatTokenizer
from sft.config import BuildConfig
from sft.data.card import data_card
from sft.data.counts import SourceCounts
from sft.data.pack import pack
from sft.data.recipes import recipe_digests
from sft.data.shards import (
    DOCUMENTS,
    KIND,
    SCHEMA_VERSION,
    TOKENIZER,
    DocumentTable,
    Pack,
    Shards,
    shard_name,
    token_type,
    write_documents,
    write_shard,
)
from sft.data.sources import SourceFile
from sft.data.split import held_out
from sft.data.spool import Spooled
from sft.data.worker import DOCUMENT_FIELDS
from sft.errors import ConfigError, DataError
from sft.progress import progress
from sft.storage.manifest import file_sha256, text_sha256, write_manifest
from sft.version import VERSION

# Settings that do not change the bytes, or are recorded in another form (names of files, not their places).
_NOT_CONTENT = {"sources_dir", "tokenizer", "out", "workers", "sources"}


@dataclass(frozen=True)
class Inputs:
    """Everything that decides the bytes of a build."""

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
    def facts(self) -> dict[str, Any]:
        """The inputs as the manifest records them."""
        settings = dataclasses.asdict(self.config)
        return {
            "version": VERSION,
            "made_with": made_with(),
            "name": self.config.name,
            "settings": {key: value for key, value in settings.items() if key not in _NOT_CONTENT},
            "tokenizer": {"sha256": self.tokenizer.sha256, "num_ids": self.tokenizer.num_ids},
            "sources": {
                name: {
                    **dataclasses.asdict(self.config.sources[name]),
                    "recipe": recipe_digests(self.recipes / name),
                    "raw_files": [{"name": f.name, "bytes": f.num_bytes, "sha256": f.sha256} for f in group],
                }
                for name, group in self.files.items()
            },
        }

    @cached_property
    def digest(self) -> str:
        """Equal for builds that must come out equal."""
        return text_sha256(json.dumps(self.facts, sort_keys=True))


# Packages whose version may decide a byte.
_LIBRARIES = ("backports.zstd", "beautifulsoup4", "datasets", "markdownify", "py3langid", "pyarrow", "tokenizers")
_CODE = Path(__file__).parents[1]


def made_with() -> dict[str, str]:
    """Versions of everything that decides bytes, this program's own code included."""
    code = "".join(
        f"{path.name} {file_sha256(path)}\n"
        for part in ("chat", "data")
        for path in sorted((_CODE / part).glob("*.py"))
    )
    return {"code_sha256": text_sha256(code), **{name: _version(name) for name in _LIBRARIES}}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def published(out: Path, inputs: Inputs) -> Shards | None:
    """The finished build of these inputs, or None if the folder is free.

    Raises: ConfigError if the folder holds anything else.
    """
    wanted = inputs.digest  # taken now: the recipes on disk may change while the build runs
    if not out.exists():
        return None
    try:
        shards = Shards.open(out, check_hashes=False)
    except DataError as error:
        raise ConfigError(f"exists and is no whole build ({error.what})", on=out, hint="name another out=…") from error
    if shards.manifest["inputs_digest"] != wanted:
        raise ConfigError(
            "holds another build: its sources, recipes, settings or tokenizer differ", on=out, hint="name another out=…"
        )
    return shards


def publish_build(folder: Path, inputs: Inputs, counts: dict[str, SourceCounts], spooled: Spooled) -> None:
    """Write everything of a build into the staging folder, the manifest last."""
    records = spooled.records
    valid = held_out(records["digest"], spooled.source, inputs.config.valid_share, inputs.config.seed)
    splits = {
        name: _write_split(folder, name, np.flatnonzero(chosen), inputs, spooled)
        for name, chosen in (("train", ~valid), ("valid", valid))
    }
    write_documents(folder / DOCUMENTS, _table(inputs, spooled, valid))
    (folder / TOKENIZER).write_text(inputs.tokenizer.json, encoding="utf-8")
    facts = inputs.facts | {
        "inputs_digest": inputs.digest,
        "seq_len": inputs.config.seq_len,
        "splits": splits,
        "sources": {
            name: {**known, **_source_facts(number, counts[name], spooled, valid)}
            for number, (name, known) in enumerate(inputs.facts["sources"].items())
        },
    }
    (folder / "README.md").write_text(data_card(facts), encoding="utf-8")
    spooled.delete()
    write_manifest(folder, KIND, SCHEMA_VERSION, facts)


def _write_split(
    folder: Path, name: str, documents: NDArray[np.int64], inputs: Inputs, spooled: Spooled
) -> dict[str, Any]:
    """Pack and write the documents of one split; the facts that the manifest records."""
    lengths = spooled.records["num_tokens"][documents]
    bins = pack(lengths, inputs.config.seq_len)
    per_shard = inputs.config.packs_per_shard
    count = -(-len(bins) // per_shard)
    shards: list[dict[str, Any]] = []
    with progress(f"write {name}", len(bins), unit="packs") as advance:
        for number in range(count):
            chosen = bins[number * per_shard : (number + 1) * per_shard]
            file = shard_name(name, number, count)
            packs = [_pack(documents[bin_], inputs, spooled) for bin_ in chosen]
            write_shard(folder / file, packs)
            supervised = sum(item.num_supervised for item in packs)
            tokens = sum(item.num_tokens for item in packs)
            shards.append({"file": file, "packs": len(packs), "tokens": tokens, "supervised_tokens": supervised})
            advance(len(packs), "")
    total = {key: sum(int(shard[key]) for shard in shards) for key in ("packs", "tokens", "supervised_tokens")}
    density = total["tokens"] / (total["packs"] * inputs.config.seq_len) if bins else 0.0
    return {**total, "documents": len(documents), "density": round(density, 6), "shards": shards}


def _pack(documents: NDArray[np.int64], inputs: Inputs, spooled: Spooled) -> Pack:
    """Lay documents end to end and pad the tail."""
    seq_len, tokenizer = inputs.config.seq_len, inputs.tokenizer
    ids = np.full(seq_len, tokenizer.pad_id, inputs.id_type)
    mask = np.zeros(seq_len, np.uint8)
    end = 0
    for document in documents:
        span = slice(spooled.offsets[document], spooled.offsets[document + 1])
        place = slice(end, end := end + int(span.stop - span.start))
        ids[place], mask[place] = spooled.ids[span], spooled.loss_mask[span]
    lengths = spooled.records["num_tokens"][documents].astype(np.uint16)
    return Pack(ids, mask, lengths, documents.astype(np.uint32), int(mask.sum()))


def _table(inputs: Inputs, spooled: Spooled, valid: NDArray[np.bool_]) -> DocumentTable:
    columns = {name: spooled.records[name] for name in DOCUMENT_FIELDS.names or ()}
    return DocumentTable(
        tuple(inputs.source_names), tuple(inputs.file_names), spooled.source, spooled.file, held_out=valid, **columns
    )


def _source_facts(number: int, counts: SourceCounts, spooled: Spooled, valid: NDArray[np.bool_]) -> dict[str, Any]:
    mine = spooled.source == number
    return {
        "rows_read": counts.rows_read,
        "rows_skipped": counts.rows_skipped,
        "rows_kept": counts.rows_kept,
        "rows_dropped": counts.rows_dropped,
        "reasons": dict(sorted(counts.reasons.items())),
        "split": counts.split,
        "truncated": counts.truncated,
        "documents": int(mine.sum()),
        "distinct_conversations": len(np.unique(spooled.records["digest"][mine])),
        "held_out_documents": int((mine & valid).sum()),
        "tokens": int(spooled.records["num_tokens"][mine].sum()),
        "supervised_tokens": int(spooled.records["num_supervised"][mine].sum()),
    }
