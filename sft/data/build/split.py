"""Which conversations are used, how often, and which are held out: pure functions of their text and a seed.

Every decision is made by one key per conversation, a hash of its first question. So conversations that open with the
same question are in the same split, and the held-out ones stay the same when sources are weighted, limited, repeated or
added, unless an added conversation opens like one that was there.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft.chat.conversation import Conversation
from sft.data.digests import group_digest
from sft.hashing import scatter

_ALL = 2.0**64


def keys(groups: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """A key between 0 and 2^64 for each group; every seed gives another order."""
    # Digests are already uniform; flipping random bits and multiplying gives another order for each seed.
    with np.errstate(over="ignore"):
        return (groups ^ scatter(np.full(1, seed, np.uint64))) * np.uint64(0x9E3779B97F4A7C15)


def is_sampled(conversation: Conversation, weight: float, seed: int) -> bool:
    """Whether the conversation is in the share that the weight keeps."""
    if weight == 1:
        return True
    return bool(keys(np.array([group_digest(conversation)], np.uint64), seed)[0] < weight * _ALL)


def held_out(
    groups: NDArray[np.uint64], source: NDArray[Any], share: float, count: int | None, seed: int
) -> NDArray[np.bool_]:
    """True for the conversations of the validation split: in every source those whose key is below the share.

    A source without such a key holds out its smallest one. A source never holds out all of its groups, unless other
    sources hold them out too. With a `count`, every source holds out that many conversations instead, or a few more if
    the last ones open alike.
    Invariant: conversations that open alike, in whatever source, are all on one side.
    """
    if share == 0 and count is None:
        return np.zeros(len(groups), bool)
    chosen = [np.zeros(0, np.uint64)]
    for number in np.unique(source):
        distinct, sizes = np.unique(groups[source == number], return_counts=True)
        place = keys(distinct, seed)
        order = np.argsort(place, kind="stable")
        if count is None:
            wanted = max(1, int((place < share * _ALL).sum()))
        else:
            wanted = int(np.searchsorted(np.cumsum(sizes[order]), count)) + 1
        chosen.append(distinct[order[: min(wanted, len(distinct) - 1)]])
    return np.isin(groups, np.concatenate(chosen))


def repeats(groups: NDArray[np.uint64], epochs: float, count: int | None, seed: int) -> NDArray[np.uint16]:
    """How often each training conversation of one source is used.

    With a `count`, exactly that many are used, those with the smallest keys; the others are used 0 times.
    """
    whole, part = divmod(epochs, 1)
    # Another seed, so that the conversations repeated once more are not those that a weight keeps first.
    uses = np.full(len(groups), whole, np.uint16) + (keys(groups, seed + 1) < part * _ALL)
    if count is not None:
        uses[np.argsort(keys(groups, seed), kind="stable")[count:]] = 0
    return uses.astype(np.uint16)
