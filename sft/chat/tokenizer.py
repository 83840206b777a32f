"""A byte-level BPE tokenizer as GPT-NeoX-20B's, with a chat format's control tokens. Only this file imports tokenizers.

Text can never become a control token: control tokens are inserted by id, and every text is encoded with
`encode_special_tokens` on, so that a tag inside a text is encoded as ordinary characters.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from sft.chat.formats.base import ChatFormat, MarkerIds, Part, marker_ids
from sft.chat.formats.registry import format_named
from sft.errors import ConfigError
from sft.hashing import text_sha256

if TYPE_CHECKING:
    from sft.chat.fast_tokenizer import FastTokenizer

NEOX_20B_SIZE = 50277
"""Vocabulary size of the published tokenizer without tags; its control ids must be those of `published_ids`."""

# The library keeps more than the ids of every text of a call in memory; larger calls are slower by a third.
_TEXTS_PER_CALL = 100
# The library caches the tokens of this many words: about 40 MB. Its default of 10,000 is reached within a few thousand
# conversations; encoding then takes a fifth to a quarter longer.
_WORD_CACHE_SIZE = 200_000


@dataclass(frozen=True)
class TokenRuns:
    """The ids of several texts, concatenated.

    Shapes: ids_T, lengths_N with T the sum of the N lengths.
    """

    ids: NDArray[np.uint32]
    lengths: NDArray[np.int64]


class ChatTokenizer:
    """Encodes text and knows the control ids of its chat format.

    A format's ids depend on the tokenizer, and the tokenizer's vocabulary holds the format's tags: so this class holds
    both.

    Invariant: no id returned by `encode` is a control id.
    """

    def __init__(
        self, tokenizer: Tokenizer, origin: str | Path = "tokenizer", chat_format: ChatFormat | None = None
    ) -> None:
        self.format = chat_format or format_named(None)
        for token in (self.format.end_token, self.format.pad_token):
            if tokenizer.token_to_id(token) is None:
                raise ConfigError(
                    f"has no {token}: not a tokenizer of GPT-NeoX-20B's form",
                    on=origin,
                    hint="take the tokenizer.json of the base model",
                )
        base_size = tokenizer.get_vocab_size()
        if max(tokenizer.get_vocab().values()) != base_size - 1:
            raise ConfigError("its ids have gaps, so a new tag could get the id of another token", on=origin)
        missing = [tag for tag in self.format.tags if tokenizer.token_to_id(tag) is None]
        tokenizer.add_special_tokens([AddedToken(tag, special=True, normalized=False) for tag in missing])
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        if isinstance(tokenizer.model, models.BPE):
            tokenizer.model._resize_cache(_WORD_CACHE_SIZE)
        self._tokenizer = tokenizer
        self._fast: FastTokenizer | None = None
        self._check_share = 0.0
        self._control = {token: int(tokenizer.token_to_id(token) or 0) for token in self.format.control_tokens}
        self.control_ids = tuple(self._control.values())
        self.end_id, self.pad_id, *_ = self.control_ids
        self._check(base_size - len(self.format.tags) + len(missing), origin)

    @classmethod
    def load(cls, path: str | Path, chat_format: ChatFormat | None = None) -> "ChatTokenizer":
        """Read a tokenizer.json, or the one inside a folder, adding the format's tags if they are absent.

        Raises: ConfigError if it is not a tokenizer of this form.
        """
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise ConfigError("no such tokenizer", on=file, hint="give the path of a tokenizer.json")
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library has no exception class of its own
            raise ConfigError(f"not readable as a tokenizer: {error}", on=file) from error
        return cls(tokenizer, file, chat_format)

    @property
    def num_ids(self) -> int:
        """One more than the highest id."""
        return int(self._tokenizer.get_vocab_size())

    def id_of(self, token: str) -> int:
        """The id of a control token."""
        return self._control[token]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids at which generation stops, in the order of the model card."""
        return tuple(map(self.id_of, self.format.stop_tokens))

    @cached_property
    def markers(self) -> tuple[MarkerIds, ...]:
        """The format's markers in the order of their kinds."""
        return tuple(marker_ids(marker, self._part_ids) for marker in self.format.markers)

    def _part_ids(self, part: Part) -> Sequence[int]:
        return self.encode([part])[0] if isinstance(part, str) else [self.id_of(part.name)]

    @cached_property
    def opens_text(self) -> NDArray[np.bool_] | None:
        """For each id, whether a text starts after it; None if the format does not mark that by control tokens."""
        tokens = self.format.opening_tokens
        return None if tokens is None else self._table(self.id_of(token) for token in tokens)

    @cached_property
    def is_control(self) -> NDArray[np.bool_]:
        """For each id, whether it is a control token."""
        return self._table(self.control_ids)

    def _table(self, ids: Iterable[int]) -> NDArray[np.bool_]:
        table = np.zeros(self.num_ids, bool)
        table[list(ids)] = True
        return table

    @cached_property
    def json(self) -> str:
        """The tokenizer with its tags as the text of a tokenizer.json."""
        return str(self._tokenizer.to_str(pretty=False))

    @cached_property
    def sha256(self) -> str:
        """Identifies the tokenizer: equal for equal ids, whether its file held the tags or not."""
        return text_sha256(self.json)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, none of them a control id."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def use_fast(self, check_share: float) -> None:
        """Make `encode_flat` use fastokens from now on, and compare this share of its texts with the reference.

        Raises: ConfigError if it is not installed or encodes a probe differently.
        """
        from sft.chat.fast_tokenizer import FastTokenizer

        self._fast, self._check_share = FastTokenizer(self.json, self._encode_flat), check_share

    def encode_flat(self, texts: Sequence[str]) -> TokenRuns:
        """The ids of all texts, concatenated, none of them a control id.

        Raises: ConfigError if a fast tokenizer is in use and its ids of a compared text differ from the reference's.
        """
        if self._fast is None:
            return TokenRuns(*self._encode_flat(texts))
        from sft.chat.fast_tokenizer import check_sample, compare

        encoded = self._fast.encode_flat(texts)
        compare(texts, encoded, self._encode_flat, check_sample(encoded, self._check_share))
        return TokenRuns(*encoded)

    def _encode_flat(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        runs: list[list[int]] = []
        for start in range(0, len(texts), _TEXTS_PER_CALL):
            runs += self.encode(texts[start : start + _TEXTS_PER_CALL])
        lengths = np.fromiter(map(len, runs), np.int64, len(runs))
        return np.fromiter(itertools.chain.from_iterable(runs), np.uint32, int(lengths.sum())), lengths

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of each id; the bytes of one character may belong to several ids.

        Raises: ConfigError if the vocabulary is not byte-level.
        """
        added = self._tokenizer.get_added_tokens_decoder()
        try:
            return [
                added[token_id].content.encode() if token_id in added else _spelt(self.name(token_id))
                for token_id in range(self.num_ids)
            ]
        except KeyError as error:
            raise ConfigError(f"tokenizer: its vocabulary is not byte-level: it contains {error}") from error

    @cached_property
    def num_bytes(self) -> NDArray[np.int32]:
        """The number of bytes of each id."""
        return np.array([len(token) for token in self.token_bytes], np.int32)

    @cached_property
    def _spelling(self) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """The bytes of all ids, concatenated, and where those of each id start."""
        spelling = np.frombuffer(b"".join(self.token_bytes), np.uint8)
        return spelling, np.cumsum(self.num_bytes, dtype=np.int32) - self.num_bytes

    def spell(self, ids: NDArray[Any]) -> bytes:
        """The bytes of some ids: the text of `decode` as bytes, also where it ends inside a character."""
        spelling, starts = self._spelling
        length = self.num_bytes[ids]
        end = np.cumsum(length, dtype=np.int32)
        place = np.repeat(starts[ids] - end + length, length)
        place += np.arange(len(place), dtype=np.int32)
        return bytes(spelling[place].tobytes())

    def decode(self, ids: Sequence[Sequence[int] | NDArray[Any]]) -> list[str]:
        """The text of each run of ids, control tokens written out."""
        return list(
            self._tokenizer.decode_batch(
                [run if isinstance(run, list) else np.asarray(run).tolist() for run in ids], skip_special_tokens=False
            )
        )

    def normalise(self, text: str) -> str:
        """The text in the tokenizer's normal form (Unicode NFC for GPT-NeoX-20B)."""
        normalizer = self._tokenizer.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))

    def name(self, token_id: int) -> str:
        """The token's entry in the vocabulary."""
        return str(self._tokenizer.id_to_token(token_id))

    def _check(self, base_size: int, origin: str | Path) -> None:
        added = self._tokenizer.get_added_tokens_decoder()
        for token_id in self.control_ids:
            token = self.name(token_id)
            if token_id not in added or not added[token_id].special:
                raise ConfigError(f"{token} is not marked special, so text could forge it", on=origin)
            if token_id in self.encode([token])[0]:
                raise ConfigError(f"the text {token} encodes to its control id", on=origin)
        if base_size == NEOX_20B_SIZE:
            wrong = {
                token: found
                for token, expected in self.format.published_ids.items()
                if (found := self._tokenizer.token_to_id(token)) != expected
            }
            if wrong:
                raise ConfigError(f"control ids {wrong}, expected {dict(self.format.published_ids)}", on=origin)


def _byte_alphabet() -> dict[str, int]:
    """The byte of each character of a byte-level vocabulary.

    Source: GPT-2's encoder; a printable byte is represented by itself, the others by the characters from 256 on.
    """
    prints = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in prints)
    return {chr(byte): byte for byte in prints} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def _spelt(token: str) -> bytes:
    return bytes(_BYTES[character] for character in token)


def train_tokenizer(texts: Iterable[str], num_ids: int, chat_format: ChatFormat | None = None) -> ChatTokenizer:
    """Train a small byte-level BPE tokenizer of the same form, for models that are too small for 50,000 tokens.

    Invariant: at most `num_ids` ids, the format's tags included; equal texts give an equal tokenizer.

    Raises: ConfigError if there is no room for the 256 bytes and the control tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    chat_format = chat_format or format_named(None)
    least = len(alphabet) + len(chat_format.control_tokens)
    if num_ids < least:
        raise ConfigError(f"a tokenizer of {num_ids} ids: expected at least {least}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_ids - len(chat_format.tags),
        special_tokens=[chat_format.end_token, chat_format.pad_token],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return ChatTokenizer(tokenizer, chat_format=chat_format)
