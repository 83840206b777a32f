"""A faster tokenizer that must give the same ids as the reference library. The only file that imports fastokens.

When it is loaded, it must encode `PROBES` as the reference does; during a build, the texts that `check_sample` selects
are compared as well.

T = tokens of all texts, concatenated; N = texts.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft.errors import ConfigError

Flat = tuple[NDArray[np.uint32], NDArray[np.int64]]
"""ids_T of all texts, concatenated, and lengths_N."""
Encode = Callable[[Sequence[str]], Flat]

_REFERENCE_HINT = "set tokenizer_backend=tokenizers"


def _probes() -> tuple[str, ...]:
    """Texts on which tokenizers of this kind often disagree, and one text that samples all of Unicode."""
    tags = ("<|endoftext|>", "<|padding|>", "<|SYSTEM|>", "<|USER|>", "<|ASSISTANT|>", "<|user|>", "<|USER", "<|")
    frames = ("{}", " {} ", "a{}b", "{0}{0}", "\n{}\n", "<{}>", "e{}\u0301", "  {}   ")
    blanks = (" ", "\t", "\n", "\r", "\r\n", "\x0b", "\x0c", "\x85", "\u00a0", "\u2028", "\u3000", " \n", "\t ")
    accents = ("e\u0301", "\u00e9", "\u212b", "\u1112\u1161\u11ab", "q\u0307\u0323", "\u1df6\u0301", "\u0730\U00016ff1")
    pictures = ("🙂", "👩‍💻", "👍🏽", "🇩🇪", "❤\ufe0f", "\u200d", "\ufe0f", "\ufffd", "\U0010ffff")
    unicode_sample = (chr(point) for point in range(0x80, 0x110000, 257) if not 0xD800 <= point < 0xE000)
    return (
        "",
        *(frame.format(tag) for frame in frames for tag in tags),
        *(f"a{blank * count}{end}" for blank in blanks for count in (1, 2, 3, 24, 25, 70) for end in ("b", "'s", "")),
        *(f"{frame}{mark}" for frame in ("", "a", " ", "1") for mark in accents + pictures),
        "I'll don't we've 'S 'RE ’s ''s 'sx _'d 1st 2nd 12345678 1,234.5e-6 x=y!= naïve 你好，世界 привет مرحبا हिन्दी",
        *("-" * count for count in (59, 60, 61, 200)),
        "ab" * 2000,
        "".join(f"{character}'s {character}1" for character in unicode_sample),
    )


PROBES = _probes()
"""Texts that a fast tokenizer must encode as the reference does before it is used."""


class FastTokenizer:
    """Encodes text without control tokens, on one thread.

    The library's word cache is bounded (about 110 MB). Set FASTOKENS_BPE_THREADS to use more threads.

    Raises: ConfigError if fastokens is not installed, cannot read the tokenizer, or encodes a probe differently.
    """

    def __init__(self, tokenizer_json: str, reference: Encode) -> None:
        # A build is already parallel by processes. The library reads this variable once, when it first encodes.
        os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
        self._tokenizer = _load(tokenizer_json)
        compare(PROBES, self.encode_flat(PROBES), reference)

    def encode_flat(self, texts: Sequence[str]) -> Flat:
        """The ids of all texts, concatenated, and the number of ids of each text; no text becomes a control id.

        Shapes: ids_T, lengths_N. The ids are read-only.
        """
        ids, offsets = self._tokenizer.encode_batch_flat(texts, split_special_tokens=True)
        ends = np.frombuffer(offsets, np.int64)
        return np.frombuffer(ids, np.uint32), ends[1:] - ends[:-1]


def _load(tokenizer_json: str) -> Any:
    try:
        from fastokens import Tokenizer
    except ImportError as error:
        raise ConfigError(
            "tokenizer_backend=fastokens: the package fastokens is not installed",
            hint=f"pip install 'sft[fast]', or {_REFERENCE_HINT}",
        ) from error
    try:
        return Tokenizer.from_json_str(tokenizer_json)
    except ValueError as error:
        raise ConfigError(f"fastokens cannot read this tokenizer: {error}", hint=_REFERENCE_HINT) from error


def check_sample(encoded: Flat, share: float) -> NDArray[np.int64]:
    """The texts of a batch to compare with the reference: a share of them, chosen by a hash of their own ids.

    Invariant: whether a text is chosen does not depend on the other texts of its batch.
    """
    ids_T, lengths_N = encoded
    if not len(ids_T):
        return np.arange(len(lengths_N))
    # Hashing the texts themselves would take a fifth of the time of encoding them. Texts without ids are always chosen.
    odd, ends_N = np.uint32(0x9E3779B1), np.cumsum(lengths_N)
    hash_N = ids_T[ends_N - 1] * odd
    hash_N = (hash_N + ids_T[ends_N - 1 - lengths_N // 2]) * odd
    hash_N = (hash_N + lengths_N.astype(np.uint32)) * odd
    return np.flatnonzero((hash_N < share * 2**32) | (lengths_N == 0))


def compare(texts: Sequence[str], encoded: Flat, reference: Encode, chosen: NDArray[np.int64] | None = None) -> None:
    """Compare the ids of the chosen texts, or of all texts, with the reference's.

    Raises: ConfigError showing the first text whose ids differ.
    """
    ids_T, lengths_N = encoded
    numbers = range(len(texts)) if chosen is None else chosen.tolist()
    expected_T, expected_N = reference([texts[number] for number in numbers])
    stops, expected_stops = np.cumsum(lengths_N).tolist(), np.cumsum(expected_N).tolist()
    start = 0
    for number, stop in zip(numbers, expected_stops, strict=True):
        found = ids_T[stops[number] - lengths_N[number] : stops[number]]
        if not np.array_equal(found, expected_T[start:stop]):
            wanted = expected_T[start:stop].tolist()
            raise ConfigError(
                f"fastokens encodes {texts[number][:60]!a} as {found[:8].tolist()}… ({len(found)} ids), "
                f"the reference as {wanted[:8]}… ({len(wanted)} ids)",
                hint=_REFERENCE_HINT,
            )
        start = stop
