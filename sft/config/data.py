"""Settings of `sft build` and of the sources that a mixture names."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Annotated, ClassVar, Literal

from annotated_types import Interval

from sft.config.fields import ABOVE_ZERO, AT_LEAST_0, AT_LEAST_1, SEED, SHARE, PathText


@dataclass(frozen=True)
class SourceConfig:
    """One source: its recipe (data_recipes/<name>/recipe.yaml) and what the mixture says about it."""

    FORMERLY: ClassVar[Mapping[str, str]] = {"licence": "license"}

    title: str
    """Common name of the data set."""
    hub_id: str
    """Where it is published: owner/name on the Hugging Face hub."""
    files: tuple[str, ...]
    """Glob patterns below sources_dir that find its raw files; .gz and .zst are added automatically."""
    license: str
    """SPDX identifier or name of its license."""
    citation: str
    """How its authors ask to be cited, in one line."""
    system: str
    """System text of its conversations; `card` is the prompt of the StableLM-Tuned-Alpha card."""
    commercial: bool = False
    """True if the license allows commercial use."""
    too_long: Literal["drop", "truncate"] = "drop"
    """What happens to a single exchange longer than seq_len."""
    revision: str = "main"
    """Branch, tag or commit of the hub repository that `sft fetch` downloads."""
    hub_files: tuple[str, ...] = ()
    """Glob patterns of the files of the hub repository that `sft fetch` downloads."""
    switches: dict[str, bool] = field(default_factory=dict)
    """Named variants of the recipe, keyword arguments of its `convert`; its README explains them."""
    repair: bool = True
    """Undo mojibake and remove invisible control characters."""
    language: str | None = None
    """Keep conversations in this language only (ISO 639-1, such as en); null keeps all."""
    min_answer_characters: Annotated[int, AT_LEAST_0] = 0
    """Drop conversations whose answers together are shorter."""
    max_characters: Annotated[int, AT_LEAST_1] | None = None
    """Drop conversations whose turns together are longer; null keeps all."""
    refusals: Literal["keep", "drop"] = "keep"
    """What happens to conversations in which the assistant refuses or speaks of itself as a language model."""
    personal_data: Literal["keep", "redact"] = "keep"
    """`redact` replaces e-mail and IP addresses, telephone, card and account numbers by their kind, as in <email>."""
    duplicates: Literal["keep", "drop"] = "drop"
    """What happens to a conversation whose turns are those of an earlier one, in this source or in one before it."""
    near_duplicates: Annotated[float, Interval(ge=0.5, le=1)] | None = None
    """Drop conversations that resemble an earlier one at least this much (such as 0.8); null keeps all.

    Similarity is the share of word 5-grams in common, of the whole text or of the answers alone, whichever is less."""
    decontaminate: bool = True
    """Drop conversations that share text with the mixture's evaluation_files, if it names any."""
    max_drop_share: Annotated[float, SHARE] = 0.5
    """More dropped rows than this share stop the build: the recipe no longer fits its source."""
    max_damaged_share: Annotated[float, SHARE] = 0.001
    """More unreadable rows (bad JSON, bad UTF-8, wrong columns) than this share stop the build."""
    enabled: bool = True
    """False leaves the source out of the mixture."""
    max_rows: Annotated[int, AT_LEAST_1] | None = None
    """Read at most this many raw rows, in file order; null reads all."""
    weight: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Share of its conversations to use, above 0 and up to 1, chosen by a hash of their text."""
    num_conversations: Annotated[int, AT_LEAST_1] | None = None
    """Train on exactly this many of its conversations, chosen by a hash of their text; null takes all."""
    epochs: Annotated[float, Interval(ge=1, le=100)] = 1.0
    """How often each training conversation is packed; of 2.5, half of them are packed three times."""

    def contradictions(self) -> Iterator[str]:
        """Wrong text settings, which have no bounds."""
        if self.language is not None and not re.fullmatch("[a-z]{2}", self.language):
            yield f"language={self.language!r}: expected an ISO 639-1 code, such as en"
        if not self.files:
            yield "files: expected at least one pattern"
        for pattern in self.files:
            if not pattern or PurePath(pattern).is_absolute():
                yield f"files={pattern!r}: expected a pattern below sources_dir"


@dataclass(frozen=True)
class BuildConfig:
    """`sft build`: raw files to packed shards."""

    FORMERLY: ClassVar[Mapping[str, str]] = {"unit_timeout_s": "chunk_timeout_s"}

    sources: dict[str, SourceConfig]
    """The sources of the mixture by name."""
    sources_dir: PathText
    """Folder that holds the raw files."""
    tokenizer: PathText
    """Path of a tokenizer.json (or of a folder that holds one) in the form of GPT-NeoX-20B's."""
    out: PathText
    """Folder to publish; it must not exist yet, or hold this very build."""
    name: str = "mixture"
    """Name of the mixture, for the data-set card."""
    seq_len: Annotated[int, Interval(ge=16, le=65535)] = 4096
    """Tokens per packed sequence."""
    valid_share: Annotated[float, Interval(ge=0, lt=0.5)] = 0.01
    """Share of each source's conversations held out for validation (at least one).

    A hash of their first question chooses them; weights, numbers, epochs and rows that open otherwise do not."""
    valid_conversations: Annotated[int, AT_LEAST_1] | None = None
    """Hold out this many conversations of each source instead of a share."""
    seed: Annotated[int, SEED] = 0
    """Chooses the held-out conversations."""
    system: Literal["recipe", "card"] = "recipe"
    """`card` puts the card's system prompt on every source."""
    format: Literal["stablelm"] = "stablelm"
    """How conversations are written: what stands between their texts, and which system text is `card`."""
    supervise: Literal["assistant", "all"] = "assistant"
    """Which tokens carry loss; `all` is the as-released variant."""
    end_token: bool = True
    """End every document with <|endoftext|>; the as-released text has none."""
    packs_per_shard: Annotated[int, AT_LEAST_1] = 8192
    """Packed sequences per shard file (8192 × 4096 tokens are about 100 MB)."""
    evaluation_files: tuple[PathText, ...] = ()
    """Text, JSON or JSONL files of evaluation questions; conversations that share text with them are dropped."""
    evaluation_ngram_words: Annotated[int, Interval(ge=5)] = 13
    """How many successive words in common make a conversation contaminated."""
    max_row_bytes: Annotated[int, AT_LEAST_1] = 4_000_000
    """Longer rows are dropped unread, so that a damaged file cannot fill the memory."""
    workers: Annotated[int, AT_LEAST_0] = 0
    """Worker processes; 0 takes all cores. The result does not depend on it."""
    chunk_timeout_s: Annotated[float, ABOVE_ZERO] = 600.0
    """A worker process that is stuck in a chunk (some thousand rows) for longer shows where and ends the build."""
    tokenizer_backend: Literal["tokenizers", "fastokens"] = "tokenizers"
    """What splits text into ids: the reference library, or a faster one (extra `fast`) that is checked against it."""
    tokenizer_check_share: Annotated[float, SHARE] = 0.001
    """Share of the texts whose ids from a fast backend are compared with the reference's; 1 compares all."""

    def contradictions(self) -> Iterator[str]:
        """A mixture without sources, and weights that would leave nothing to train on."""
        if not any(source.enabled for source in self.sources.values()):
            yield "sources: every source is switched off"
        if self.valid_conversations is None and 0 <= self.valid_share < 0.5:
            for name, source in self.sources.items():
                if 0 < source.weight <= self.valid_share:
                    yield f"sources.{name}.weight={source.weight}: expected more than valid_share={self.valid_share}"


@dataclass(frozen=True)
class FetchConfig(BuildConfig):
    """`sft fetch`: the settings of a build, since one mixture serves both, but no tokenizer and no place for shards."""

    tokenizer: PathText = ""
    """Not needed."""
    out: PathText = ""
    """Not needed."""
