"""This process's share of the packs of a step, in the same number of batches on every process."""

from collections.abc import Iterator, Sequence

from sft.data.batches.balance import balanced
from sft.data.batches.batch import Batch, micro_batches
from sft.data.shards import Split
from sft.errors import DataError
from sft.train.distributed.ranks import RankGroup


def shared_batches(
    split: Split,
    packs: Sequence[int],
    micro_batch_packs: int,
    ranks: RankGroup,
    cost_per_token: float = 0.0,
    noise_seed: int | None = None,
) -> Iterator[Batch]:
    """The batches of this process; a process with fewer packs than others ends with an empty batch.

    A token costs as much as attending to `cost_per_token` other tokens does.
    """
    share = my_share(split, packs, ranks, cost_per_token)
    yield from micro_batches(split, share, micro_batch_packs, noise_seed)
    for _ in range(-(-len(share) // micro_batch_packs), num_rounds(len(packs), micro_batch_packs, ranks)):
        yield Batch.empty()


def num_rounds(num_packs: int, micro_batch_packs: int, ranks: RankGroup) -> int:
    """How many batches every process computes."""
    largest_share = -(-num_packs // ranks.size)
    return -(-largest_share // micro_batch_packs)


def my_share(split: Split, packs: Sequence[int], ranks: RankGroup, cost_per_token: float) -> list[int]:
    """The packs that this process computes, in the order of the step."""
    costs = [pack_cost(split, pack, cost_per_token) for pack in packs] if ranks.size > 1 else []
    return balanced(packs, costs, ranks.size)[ranks.rank]


def require_mask(batch: Batch, split: Split, shards: str) -> None:
    """Check that the masks of a batch hold as many supervised tokens as num_supervised, which divides the loss.

    Raises: DataError if they do not.
    """
    expected = int(split.num_supervised_P[list(batch.packs)].sum())
    if batch.num_supervised != expected:
        raise DataError(
            f"packs {list(batch.packs)} hold {batch.num_supervised} supervised tokens, "
            f"their num_supervised says {expected}",
            on=shards,
            hint="build the shards again",
        )


def pack_cost(split: Split, pack: int, cost_per_token: float = 0.0) -> float:
    """The cost of a pack, in pairs of tokens that attend to each other."""
    lengths_N = split[pack].doc_lengths_N.astype(float)
    return float((lengths_N * lengths_N).sum() / 2 + cost_per_token * lengths_N.sum())
