"""Assign the packs of a step to ranks: equally many packs per rank, with loads as equal as possible.

The assignment changes only the time of the slowest rank; results differ by rounding at most.
"""

from collections.abc import Sequence


def balanced(packs: Sequence[int], costs: Sequence[float], num_ranks: int) -> list[list[int]]:
    """The packs of each rank, in the order of the step.

    Invariant: every pack is assigned once, and no rank gets two packs more than another.
    """
    if num_ranks == 1:
        return [list(packs)]
    places: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [0.0] * num_ranks
    # Round by round, the largest packs first and the least loaded rank first.
    largest_first = sorted(range(len(packs)), key=lambda place: (-costs[place], place))
    for start in range(0, len(packs), num_ranks):
        least_loaded = sorted(range(num_ranks), key=lambda rank: (loads[rank], rank))
        for rank, place in zip(least_loaded, largest_first[start : start + num_ranks], strict=False):
            places[rank].append(place)
            loads[rank] += costs[place]
    return [[packs[place] for place in sorted(share)] for share in places]
