"""The manifest of a build as dataclasses: its inputs, the counts of its rows, and its files.

Unknown keys are ignored, so that a later version can add some; in a source, every key that is not a count is a setting.
A missing key or a value of another type is an error.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypedDict

import msgspec

from sft.storage.manifest import FileFacts

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
    files: Mapping[str, FileFacts] = field(default_factory=dict)
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

        Raises: KeyError, TypeError, AttributeError or ValueError if it is not a manifest of a build.
        """
        sources = {name: _settings_apart(source) for name, source in value["sources"].items()}
        msgspec.convert(value["settings"], _SettingsRead)
        for source in sources.values():
            msgspec.convert(source["settings"], _SourceSettingsRead)
        return msgspec.convert({"format": "stablelm", **value, "sources": sources}, cls)


class _SettingsRead(TypedDict):
    """The settings of a build that its readers rely on."""

    supervise: Literal["assistant", "all"]
    end_token: bool


class _SourceSettingsRead(TypedDict):
    """The settings of a source that readers rely on."""

    title: str
    license: str
    citation: str
    commercial: bool
    weight: float
    num_conversations: int | None
    max_rows: int | None


def _settings_apart(source: Mapping[str, Any]) -> dict[str, Any]:
    """A source as a manifest records it, with the settings, which are all that is not a count, by themselves."""
    names = [item.name for item in dataclasses.fields(SourceFacts) if item.name != "settings"]
    facts = {name: item for name, item in source.items() if name in names}
    return {**facts, "settings": {key: item for key, item in renamed(source).items() if key not in names}}
