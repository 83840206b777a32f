"""The manifest of a build as dataclasses: its inputs, the counts of its rows, and its files.

Unknown keys are ignored, so that a later version can add some; in a source, every key that is not a count is a setting.
A missing key is an error.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

T = TypeVar("T")
_RENAMED = {"licence": "license"}


def renamed(source: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a source, with the key names of earlier versions replaced by the current ones."""
    return {_RENAMED.get(key, key): value for key, value in source.items()}


@dataclass(frozen=True)
class TokenizerFacts:
    """The tokenizer of a build."""

    sha256: str
    num_ids: int


@dataclass(frozen=True)
class EvaluationFile:
    """An evaluation file whose texts were removed from the build."""

    name: str
    sha256: str


@dataclass(frozen=True)
class RawFile:
    """A raw file; `name` is its path below sources_dir."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SourceInputs:
    """The inputs that determine the rows of a source."""

    settings: Mapping[str, Any]
    """Its SourceConfig, as JSON values."""
    recipe: Mapping[str, str]
    """The sha256 of the recipe's files."""
    raw_files: tuple[RawFile, ...]

    def to_json(self) -> dict[str, Any]:
        """The settings and all other fields in one mapping, as the manifest records them."""
        named = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)[1:]}
        return {**self.settings, **named, "raw_files": [dataclasses.asdict(file) for file in self.raw_files]}


@dataclass(frozen=True)
class SourceFacts(SourceInputs):
    """A source in a finished build.

    Invariant: rows_read = rows_skipped + rows_kept + rows_dropped.
    """

    rows_read: int
    rows_skipped: int
    """Left out by the source's weight or number of conversations."""
    rows_kept: int
    rows_dropped: int
    reasons: Mapping[str, int]
    """Rows and pieces that are not kept, by reason."""
    changed: Mapping[str, int]
    """Conversations that a stage changed, by stage."""
    split: int
    """Conversations cut into several pieces."""
    truncated: int
    """Conversations cut at seq_len, without an end."""
    documents: int
    distinct_conversations: int
    held_out_documents: int
    tokens: int
    """Tokens of all uses of the documents; supervised_tokens likewise."""
    supervised_tokens: int

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The source as a manifest records it, of this version or an earlier one."""
        names = [item.name for item in dataclasses.fields(cls)[1:]]
        settings = {key: item for key, item in renamed(value).items() if key not in names}
        raw_files = tuple(_taken(RawFile, file) for file in value["raw_files"])
        return cls(settings, **{**{name: value[name] for name in names}, "raw_files": raw_files})


@dataclass(frozen=True)
class ShardFacts:
    """One file of packs."""

    file: str
    packs: int
    tokens: int
    supervised_tokens: int


@dataclass(frozen=True)
class SplitFacts:
    """One split: all training packs, or all held-out packs."""

    packs: int
    tokens: int
    supervised_tokens: int
    documents: int
    density: float
    """Share of the packs' positions that are not padding."""
    shards: tuple[ShardFacts, ...]

    def to_json(self) -> dict[str, Any]:
        """The split as the manifest records it."""
        return dataclasses.asdict(self) | {"shards": [dataclasses.asdict(shard) for shard in self.shards]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The split as a manifest records it."""
        return _taken(cls, {**value, "shards": tuple(_taken(ShardFacts, shard) for shard in value["shards"])})


@dataclass(frozen=True)
class BuildInputs:
    """The inputs that determine the bytes of a build."""

    version: str
    made_with: Mapping[str, str]
    """Versions of the packages, and the hash of sft's own code."""
    name: str
    settings: Mapping[str, Any]
    """The mixture's BuildConfig without its sources, as JSON values."""
    evaluation_files: tuple[EvaluationFile, ...]
    tokenizer: TokenizerFacts
    sources: Mapping[str, SourceInputs]

    def to_json(self) -> dict[str, Any]:
        """The inputs as the manifest records them."""
        return {
            "version": self.version,
            "made_with": self.made_with,
            "name": self.name,
            "settings": self.settings,
            "evaluation_files": [dataclasses.asdict(file) for file in self.evaluation_files],
            "tokenizer": dataclasses.asdict(self.tokenizer),
            "sources": {name: source.to_json() for name, source in self.sources.items()},
        }


@dataclass(frozen=True)
class BuildManifest(BuildInputs):
    """A build: its inputs and its results."""

    sources: Mapping[str, SourceFacts]
    inputs_digest: str
    format: str
    """The chat format's name; manifests of schema version 3 have none, which means stablelm."""
    seq_len: int
    splits: Mapping[str, SplitFacts]
    content_digest: str = ""
    """Identifies the data set; known once all files are written, like `files`."""
    files: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    schema_version: int = 0

    def to_json(self) -> dict[str, Any]:
        """The manifest without the fields that are known only after all files are written."""
        splits = {name: split.to_json() for name, split in self.splits.items()}
        results = {
            "inputs_digest": self.inputs_digest,
            "format": self.format,
            "seq_len": self.seq_len,
            "splits": splits,
        }
        return super().to_json() | results

    def as_training_data(self) -> dict[str, Any]:
        """The facts about a build that a checkpoint trained on it records, as JSON values."""
        facts = self.to_json()
        return {
            "name": self.name,
            "content_digest": self.content_digest,
            "sources": facts["sources"],
            "tokenizer": facts["tokenizer"],
            "format": self.format,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The manifest as it was written, by this version or an earlier one.

        Raises: KeyError, TypeError or AttributeError if it is not a manifest of a build.
        """
        typed = {
            "format": value.get("format", "stablelm"),
            "evaluation_files": tuple(_taken(EvaluationFile, file) for file in value["evaluation_files"]),
            "tokenizer": _taken(TokenizerFacts, value["tokenizer"]),
            "sources": {name: SourceFacts.from_json(source) for name, source in value["sources"].items()},
            "splits": {name: SplitFacts.from_json(split) for name, split in value["splits"].items()},
        }
        return _taken(cls, {**value, **typed})


def _taken(kind: type[T], value: Mapping[str, Any]) -> T:
    """An instance of the dataclass; keys that are not its fields are ignored."""
    return kind(**{item.name: value[item.name] for item in dataclasses.fields(kind)})  # type: ignore[arg-type]
