"""MinHash: a signature of a few numbers per text, to find texts that share most of their phrases.

A text is the set of its runs of five words, its shingles. For each of 120 permutations of the hash values, the minimum
over the set is taken; two sets have the same minimum with a probability that is their Jaccard similarity J. Six minima
form a band, which is hashed to one number, and at least one of 20 bands is equal with probability 1 - (1 - J^6)^20:
0.27 for J = 0.5, 0.92 for 0.7, 0.998 for 0.8, 0.9999997 for 0.9.

Source: Broder, On the resemblance and containment of documents, 1997; bands: Leskovec, Rajaraman and Ullman, Mining of
Massive Datasets, chapter 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sft.data.words import ngrams, words_of_texts

# W: words, N: shingles, T: conversations, B: bands, P: permutations of the 32-bit hashes

SHINGLE_WORDS = 5
NUM_BANDS, ROWS_PER_BAND = 20, 6
NO_BAND = np.uint64(0)
"""The band hash of a text without words, which resembles no other text."""

# Hashes permuted at once: few enough that their table fits in a core's own cache.
_CHUNK = 512
# Conversations per call: enough to make the overhead of a call small, few enough to need little memory.
_BATCH = 128
# NumPy guarantees that the raw stream of this generator never changes.
_RANDOM = np.random.PCG64(0)
_STREAM = _RANDOM.random_raw(NUM_BANDS * ROWS_PER_BAND)
_BAND_WEIGHTS = _RANDOM.random_raw(ROWS_PER_BAND) | np.uint64(1)
# x -> a x + b modulo 2^32 is a permutation if a is odd.
_MULTIPLIERS_P = (_STREAM >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
_OFFSETS_P = _STREAM.astype(np.uint32)


@dataclass(frozen=True, slots=True)
class Shingles:
    """The sorted distinct shingle hashes of a conversation and of its answers alone."""

    all: NDArray[np.uint64]
    answers: NDArray[np.uint64]

    @property
    def num_bytes(self) -> int:
        """Memory of the hashes."""
        return self.all.nbytes + self.answers.nbytes

    def similarity(self, other: "Shingles") -> float:
        """The Jaccard similarity of the conversations or of their answers, whichever is lower.

        Two questions about the same long passage share most of their text, but their answers differ.
        """
        return min(jaccard(self.all, other.all), jaccard(self.answers, other.answers))


def jaccard(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    """The share of two sorted sets' elements that are in both; 0 for two empty ones."""
    both = np.concatenate([one, other])
    both.sort(kind="stable")  # merges the two runs
    common = int(np.count_nonzero(both[1:] == both[:-1]))
    return common / max(1, len(both) - common)


def shingles(texts: Sequence[str]) -> Shingles:
    """The shingles of a conversation, given its turns; a text of fewer than five words is one shingle."""
    return Shingles(np.unique(_shingles([texts])[0]), np.unique(_shingles([texts[1::2]])[0]))


def signature(texts: Sequence[str]) -> NDArray[np.uint64]:
    """The band hashes of one conversation's turns.

    Shapes: (NUM_BANDS,)
    """
    bands: NDArray[np.uint64] = signatures([texts])[0]
    return bands


def signatures(conversations: Sequence[Sequence[str]]) -> NDArray[np.uint64]:
    """The band hashes of many conversations, each given by its turns, the same in every process.

    Shapes: (conversations, NUM_BANDS)
    """
    bands_TB = np.full((len(conversations), NUM_BANDS), NO_BAND)
    for start in range(0, len(conversations), _BATCH):
        hashes_N, counts_T = _shingles(conversations[start : start + _BATCH])
        # A conversation without shingles has no minimum.
        spoken_T = np.flatnonzero(counts_T)
        minima_PT = _minima((hashes_N >> np.uint64(32)).astype(np.uint32), counts_T[spoken_T])
        rows = minima_PT.T.reshape(-1, NUM_BANDS, ROWS_PER_BAND).astype(np.uint64)
        bands_TB[start + spoken_T] = rows @ _BAND_WEIGHTS
    return bands_TB


def _shingles(conversations: Sequence[Sequence[str]]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The shingles of the conversations, in order and concatenated, and the number of shingles of each conversation."""
    words_W, lengths_T = words_of_texts(["\n".join(texts) for texts in conversations])
    ends_T = np.cumsum(lengths_T)
    hashes_W = np.zeros_like(words_W)
    runs = ngrams(words_W, SHINGLE_WORDS)
    hashes_W[: len(runs)] = runs
    is_shingle_W = np.arange(len(words_W)) + SHINGLE_WORDS <= np.repeat(ends_T, lengths_T)
    for text in np.flatnonzero((lengths_T > 0) & (lengths_T < SHINGLE_WORDS)).tolist():
        start = ends_T[text] - lengths_T[text]
        hashes_W[start] = ngrams(words_W[start : ends_T[text]], lengths_T[text])[0]
        is_shingle_W[start] = True
    return hashes_W[is_shingle_W], np.where(lengths_T > 0, np.maximum(lengths_T - SHINGLE_WORDS + 1, 1), 0)


def _minima(hashes_N: NDArray[np.uint32], counts_T: NDArray[np.int64]) -> NDArray[np.uint32]:
    """The minimum of each permutation over each conversation's hashes; no count may be 0."""
    ends_T = np.cumsum(counts_T)
    starts_T = ends_T - counts_T
    minima_PT = np.full((len(_OFFSETS_P), len(counts_T)), 0xFFFFFFFF, np.uint32)
    for start in range(0, len(hashes_N), _CHUNK):
        permuted_PN = _MULTIPLIERS_P[:, None] * hashes_N[start : start + _CHUNK]
        permuted_PN += _OFFSETS_P[:, None]
        parts = slice(np.searchsorted(ends_T, start, "right"), np.searchsorted(starts_T, start + _CHUNK, "left"))
        least_PT = np.minimum.reduceat(permuted_PN, np.maximum(starts_T[parts] - start, 0), axis=1)
        minima_PT[:, parts] = np.minimum(minima_PT[:, parts], least_PT)
    return minima_PT
