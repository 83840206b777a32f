"""Conversations that nearly repeat an earlier one: found by equal band hashes, confirmed by comparing the texts."""

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sft.data.dedup.minhash import NO_BAND, NUM_BANDS, Shingles

# N: conversations, M: members, conversations that share a band with another one, in the order of conversations

MAX_FOUND_PER_BAND = 64
"""Maximum number of earlier kept conversations looked up per band."""
MAX_COMPARED = 32
"""Maximum number of the conversations looked up that are compared with a conversation."""
_CACHED_BYTES = 1 << 27
_NO_MEMBER = 0xFFFFFFFF

Bands = Callable[[int], NDArray[np.uint64]]
ShinglesOf = Callable[[int], Shingles]


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """A conversation to drop, and the kept one before it that it resembles."""

    conversation: int
    twin: int
    similarity: float


def near_duplicates(
    num_conversations: int,
    bands: Bands,
    thresholds: NDArray[np.float32],
    shingles: ShinglesOf,
    alive: NDArray[np.bool_],
) -> list[NearDuplicate]:
    """The conversations to drop, in order.

    In order, a conversation is dropped if it resembles an earlier one that is kept: the two share a band, and their
    similarity is at least its threshold. Its twin is the first such conversation. Only the last MAX_FOUND_PER_BAND kept
    conversations of a band are looked up, and of all found, the MAX_COMPARED that share most bands are compared, the
    later ones in case of a tie. This bounds the time for texts that consist mostly of the same template; a twin that is
    far back and shares only the template's bands is missed.

    `bands(b)` gives band b of all conversations, and is called twice; `thresholds` are NaN for conversations that may
    not be dropped; `shingles(i)` gives the shingles of conversation i; conversations that are not `alive` are neither
    dropped nor twins.

    Invariant: equal input gives equal output. Memory: 80 bytes per conversation that shares a band with another, 12 per
    shared band value, and a cache of bounded size.
    """
    droppable_N = alive & ~np.isnan(thresholds)
    members_M, kept = _members(num_conversations, bands, alive, droppable_N)
    cached = _Cache(shingles)
    found = []
    for member, conversation in enumerate(members_M.tolist()):
        twin = None
        if droppable_N[conversation]:
            earlier = members_M[kept.earlier(member)].tolist()
            twin = _twin(conversation, earlier, thresholds[conversation], cached)
        if twin is None:
            kept.add(member)
        else:
            found.append(twin)
    return found


def _twin(conversation: int, earlier: list[int], threshold: np.float32, shingles: ShinglesOf) -> NearDuplicate | None:
    for other in earlier:
        similarity = shingles(conversation).similarity(shingles(other))
        # Compared in the threshold's own precision, so that 4 of 5 reach a threshold of 0.8.
        if np.float32(similarity) >= threshold:
            return NearDuplicate(conversation, other, similarity)
    return None


def _members(
    num_conversations: int, bands: Bands, alive_N: NDArray[np.bool_], droppable_N: NDArray[np.bool_]
) -> tuple[NDArray[np.intp], "_Kept"]:
    """The conversations that share a band with another one, if at least one of them may be dropped."""
    shared = []
    is_member_N = np.zeros(num_conversations, bool)
    for band in range(NUM_BANDS):
        column_N = bands(band)
        shared.append(_shared(column_N, alive_N, droppable_N))
        is_member_N |= _places(shared[-1], column_N)[1]
    members_M = np.flatnonzero(is_member_N & alive_N)
    buckets = np.zeros((len(members_M), NUM_BANDS), np.uint32)
    num_buckets = 1
    for band, values in enumerate(shared):
        places_M, hit_M = _places(values, bands(band)[members_M])
        buckets[hit_M, band] = places_M[hit_M] + num_buckets
        num_buckets += len(values)
    return members_M, _Kept(buckets, num_buckets)


def _shared(
    column_N: NDArray[np.uint64], alive_N: NDArray[np.bool_], droppable_N: NDArray[np.bool_]
) -> NDArray[np.uint64]:
    """The sorted values that occur more than once in the column, at least once in a conversation to drop."""
    values = np.sort(column_N[alive_N])
    again = np.unique(values[1:][values[1:] == values[:-1]])
    places_N, hit_N = _places(again, column_N)
    return again[np.unique(places_N[hit_N & droppable_N])]


def _places(values: NDArray[np.uint64], column: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """The index of each of the column's entries among the sorted values, and whether it is one of them."""
    places = np.searchsorted(values, column)
    return places, (np.append(values, NO_BAND)[places] == column) & (column != NO_BAND)


class _Kept:
    """The kept members of every bucket, newest first, as linked lists in one array.

    A bucket is a band and a value that several members have in it. A row of the array holds a member's buckets, 0 for
    none, until the member is added; from then on, the member before it in each of them.
    """

    def __init__(self, buckets: NDArray[np.uint32], num_buckets: int) -> None:
        self._rows = buckets
        self._newest = np.full(num_buckets, _NO_MEMBER, np.uint32)

    def earlier(self, member: int) -> list[int]:
        """The kept members to compare with this one, oldest first."""
        num_shared: Counter[int] = Counter()
        for band, kept in enumerate(self._newest[self._rows[member]].tolist()):
            for _ in range(MAX_FOUND_PER_BAND):
                if kept == _NO_MEMBER:
                    break
                num_shared[kept] += 1
                kept = int(self._rows[kept, band])
        return sorted(sorted(num_shared, key=lambda other: (-num_shared[other], -other))[:MAX_COMPARED])

    def add(self, member: int) -> None:
        """Add a kept member, which becomes the newest of its buckets."""
        buckets = self._rows[member].copy()
        self._rows[member] = self._newest[buckets]
        self._newest[buckets] = member
        self._newest[0] = _NO_MEMBER


class _Cache:
    """A least-recently-used cache of shingles, bounded in bytes."""

    def __init__(self, shingles: ShinglesOf) -> None:
        self._shingles, self._num_bytes = shingles, 0
        self._cached: OrderedDict[int, Shingles] = OrderedDict()

    def __call__(self, conversation: int) -> Shingles:
        if conversation in self._cached:
            self._cached.move_to_end(conversation)
            return self._cached[conversation]
        fresh = self._cached[conversation] = self._shingles(conversation)
        self._num_bytes += fresh.num_bytes
        while self._num_bytes > _CACHED_BYTES and len(self._cached) > 1:
            self._num_bytes -= self._cached.popitem(last=False)[1].num_bytes
        return fresh
