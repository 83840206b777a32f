"""One chunk of raw rows → documents: convert, filter, encode, verify. Runs in a worker process."""

import gc
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft.chat.conversation import Conversation, Drop
from sft.chat.encode import Encoded, Layout, encode
from sft.chat.formats.registry import format_named
from sft.chat.supervision import first_violations
from sft.chat.tokenizer import ChatTokenizer
from sft.config.data import BuildConfig, SourceConfig
from sft.data.build.chunk import DOCUMENT_FIELDS, Chunk, ChunkResult, Rejected
from sft.data.build.split import is_sampled
from sft.data.dedup.minhash import signatures
from sft.data.digests import content_digests, digest, group_digest
from sft.data.filters.contamination import EvaluationIndex
from sft.data.filters.pii import redact
from sft.data.filters.pipeline import stages
from sft.data.shards import token_type
from sft.data.sources.recipe import load_converter, recipe_digests
from sft.data.sources.rows import EXCERPT_CHARACTERS, excerpt, parse
from sft.errors import ConfigError, DataError
from sft.hashing import file_sha256

CYCLE_CHECK_OBJECTS = 20_000
"""New objects between two runs of the cycle collector; with Python's default it takes a tenth of a chunk's time."""


@contextmanager
def _rare_cycle_collection() -> Iterator[None]:
    """Run the cycle collector less often: only parsed HTML pages form reference cycles, not rows, texts or tokens."""
    usual = gc.get_threshold()
    gc.set_threshold(CYCLE_CHECK_OBJECTS, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


@dataclass(frozen=True)
class Ingredients:
    """Hashes of the files that a worker loads."""

    tokenizer: str
    recipes: Mapping[str, Mapping[str, str]]
    evaluation: Sequence[str]

    @classmethod
    def now(cls, config: BuildConfig, recipes: Path, tokenizer: ChatTokenizer) -> "Ingredients":
        """The hashes of the files as they are now."""
        digests = {name: recipe_digests(recipes / name) for name in config.sources}
        return cls(tokenizer.sha256, digests, [file_sha256(Path(file)) for file in config.evaluation_files])


class Worker:
    """Holds what every chunk needs: the tokenizer, the recipes' functions and stages, the index of evaluation texts.

    Raises: ConfigError if a file that it loads has changed since the build started.
    """

    def __init__(
        self,
        config: BuildConfig,
        recipes: Path,
        tokenizer: ChatTokenizer | None = None,
        expected: Ingredients | None = None,
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer or load_tokenizer(config)
        self._layouts = {name: layout(config, source) for name, source in config.sources.items()}
        self._id_type = token_type(self._tokenizer.num_ids)
        self._convert = {name: load_converter(recipes / name, item.switches) for name, item in config.sources.items()}
        files = [Path(file) for file in config.evaluation_files]
        evaluation = EvaluationIndex.load(files, config.evaluation_ngram_words) if files else None
        self._stages = {
            name: stages(source, evaluation if source.decontaminate else None)
            for name, source in config.sources.items()
        }
        self._signs = needs_signatures(config)
        # With a fast tokenizer, the share that was compared; with the reference tokenizer, 1.
        self._checked_share = wanted_check_share(config)
        if expected is not None and Ingredients.now(config, recipes, self._tokenizer) != expected:
            raise ConfigError(
                "a recipe, the tokenizer or an evaluation file changed since the build started",
                on=recipes,
                hint="build again, and do not edit them meanwhile",
            )

    @_rare_cycle_collection()
    def run(self, chunk: Chunk) -> ChunkResult:
        """Turn the rows of a chunk into documents."""
        source = self._config.sources[chunk.source]
        rejected: list[Rejected] = []
        kept: list[tuple[int, Conversation]] = []
        changed: Counter[str] = Counter()
        num_skipped = 0
        for number, raw in chunk.rows:
            row = parse(raw, self._config.max_row_bytes)
            outcome = row if isinstance(row, Drop) else self._conversation(chunk, number, row)
            if isinstance(outcome, Conversation):
                done = self._stages[chunk.source].run(outcome)
                outcome = done.conversation
                if done.changed:
                    changed.update(done.changed)
            if isinstance(outcome, Drop):
                text = excerpt(raw) if source.personal_data == "keep" else excerpt(_redacted(row))
                rejected.append(Rejected(number, None, outcome.reason, _shown(outcome.detail, source), text))
            elif not is_sampled(outcome, source.weight, self._config.seed):
                num_skipped += 1
            else:
                kept.append((number, outcome))
        records, documents, signed = self._documents(chunk.source, source, kept, rejected)
        ids = _concatenate([document.ids for document in documents], self._id_type)
        loss_mask = _concatenate([document.loss_mask for document in documents], np.uint8)
        return ChunkResult(
            source=chunk.source,
            file=chunk.file,
            num_rows=len(chunk.rows),
            num_skipped=num_skipped,
            num_truncated=sum(document.truncated for document in documents),
            checked_share=self._checked_share,
            changed=dict(sorted(changed.items())),
            rejected=sorted(rejected, key=lambda item: (item.row, item.piece or 0)),
            documents=_completed(records, ids, loss_mask),
            ids=ids,
            loss_mask=loss_mask,
            turn_starts=_concatenate([document.turn_starts for document in documents], np.uint16),
            bands=signatures([[message.text for message in item.messages] for item in signed]),
        )

    def _conversation(self, chunk: Chunk, number: int, row: Mapping[str, Any]) -> Conversation | Drop:
        try:
            conversation = self._convert[chunk.source](row)
        except Exception as error:
            raise DataError(
                f"source {chunk.source}: its recipe failed: {error!r}",
                on=f"{chunk.file}, row {number}",
                hint="repair convert.py, and add a case for this row",
            ) from error
        if not isinstance(conversation, (Conversation, Drop)):
            raise DataError(
                f"source {chunk.source}: its recipe returned {conversation!r}",
                on=f"{chunk.file}, row {number}",
                hint="convert must return a Conversation or a Drop",
            )
        return conversation

    def _documents(
        self,
        name: str,
        source: SourceConfig,
        kept: Sequence[tuple[int, Conversation]],
        rejected: list[Rejected],
    ) -> tuple[list[tuple[Any, ...]], list[Encoded], list[Conversation]]:
        """Encode and verify; pieces that fail are added to `rejected`. Also returns the conversations to sign, if any.

        The records' fields about tokens are filled in later, by `_completed`.
        """
        conversations = [conversation for _, conversation in kept]
        systems = [system_text(self._config, source, conversation) for conversation in conversations]
        encoded = encode(conversations, systems, self._tokenizer, self._layouts[name])
        proofs = iter(self._proofs(name, [piece for cut in encoded for piece in cut if isinstance(piece, Encoded)]))
        records: list[tuple[Any, ...]] = []
        documents: list[Encoded] = []
        signed: list[Conversation] = []
        for (row, conversation), cut in zip(kept, encoded, strict=True):
            before = len(documents)
            same, group = digest(conversation), group_digest(conversation)
            for number, piece in enumerate(cut):
                drop = piece if isinstance(piece, Drop) else next(proofs)
                if drop is not None:
                    text = conversation.messages[0].text[:EXCERPT_CHARACTERS]
                    rejected.append(Rejected(row, number, drop.reason, _shown(drop.detail, source), text))
                elif isinstance(piece, Encoded):
                    first, length = piece.first_exchange, len(piece.ids)
                    num_texts = len(piece.turn_starts)
                    records.append((row, number, first, same, group, 0, length, 0, num_texts, piece.truncated))
                    documents.append(piece)
            if self._signs and len(documents) > before:
                signed.append(conversation)
        return records, documents, signed

    def _proofs(self, name: str, documents: Sequence[Encoded]) -> list[Drop | None]:
        return first_violations(documents, self._tokenizer, self._layouts[name])


def load_tokenizer(config: BuildConfig) -> ChatTokenizer:
    """The tokenizer of a build, with the configured backend."""
    tokenizer = ChatTokenizer.load(config.tokenizer, format_named(config.format))
    if config.tokenizer_backend == "fastokens":
        tokenizer.use_fast(config.tokenizer_check_share)
    return tokenizer


def wanted_check_share(config: BuildConfig) -> float:
    """The share of texts whose ids must be the reference tokenizer's or compared with it."""
    return 1.0 if config.tokenizer_backend == "tokenizers" else config.tokenizer_check_share


def layout(config: BuildConfig, source: SourceConfig) -> Layout:
    """The layout of a source's documents."""
    return Layout(config.seq_len, source.too_long, config.supervise, config.end_token)


def system_text(config: BuildConfig, source: SourceConfig, conversation: Conversation) -> str:
    """The system text of a conversation: the card's if the mixture sets it, else its own, else the recipe's."""
    text = source.system if conversation.system is None else conversation.system
    return format_named(config.format).default_system if "card" in (config.system, text) else text


def needs_signatures(config: BuildConfig) -> bool:
    """Whether any source drops near-duplicates; all sources are signed then, since a twin may be in any of them."""
    return any(source.near_duplicates is not None for source in config.sources.values())


def _redacted(value: Any) -> Any:
    """A row with personal data redacted, for the published folder; empty if the row is not readable."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: _redacted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    return {} if isinstance(value, Drop) else value


def _shown(detail: str, source: SourceConfig) -> str:
    """The detail of a Drop, with personal data redacted if the source asks for it."""
    if source.personal_data == "keep":
        return detail
    # Details are truncated; the last word may be half an address, which no pattern matches.
    *whole, last = redact(detail).split(" ")
    return " ".join([*whole, "…" if "@" in last or sum(map(str.isdigit, last)) > 4 else last])


def _completed(records: Sequence[tuple[Any, ...]], ids: NDArray[Any], loss_mask: NDArray[np.uint8]) -> NDArray[np.void]:
    """The records as a table, with the hashes and counts that are computed for all documents at once."""
    table = np.array(records, DOCUMENT_FIELDS)
    ends = np.cumsum(table["num_tokens"], dtype=np.int64)
    table["content"] = content_digests(ids, loss_mask, ends)
    table["num_supervised"] = np.add.reduceat(loss_mask, ends - table["num_tokens"], dtype=np.uint32)
    return table


def _concatenate(parts: Sequence[NDArray[Any]], kind: Any) -> NDArray[Any]:
    return np.concatenate(parts, dtype=kind, casting="unsafe") if parts else np.zeros(0, kind)
