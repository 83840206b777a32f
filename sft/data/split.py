"""Which conversations are held out: a pure function of their content and a seed."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft.data.order import scatter


def held_out(digests: NDArray[np.uint64], source: NDArray[Any], share: float, seed: int) -> NDArray[np.bool_]:
    """True for the documents of the validation split.

    From every source the share (at least one) of its distinct conversations whose key is smallest.
    Invariant: equal conversations, in whatever source, are all on one side.
    """
    if share == 0:
        return np.zeros(len(digests), bool)
    chosen = [np.zeros(0, np.uint64)]
    for number in np.unique(source):
        distinct = np.unique(digests[source == number])
        count = min(max(1, round(share * len(distinct))), len(distinct) - 1)
        chosen.append(distinct[np.argsort(_keys(distinct, seed), kind="stable")[:count]])
    return np.isin(digests, np.concatenate(chosen))


def _keys(digests: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    # Digests are uniform already; flipping bits at random and multiplying gives each seed an order of its own.
    with np.errstate(over="ignore"):
        return (digests ^ scatter(np.full(1, seed, np.uint64))) * np.uint64(0x9E3779B97F4A7C15)
