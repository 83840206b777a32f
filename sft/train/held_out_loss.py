"""Held-out loss, attributed to the source that each document came from.

Shape letters: S supervised tokens of a batch, N its documents.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sft.data.batches.batch import IGNORE, Batch
from sft.data.batches.sampler import Order
from sft.data.documents import DocumentTable
from sft.data.shards import Split
from sft.train.distributed.rank_batches import shared_batches
from sft.train.distributed.ranks import SINGLE, RankGroup
from sft.train.engine.forward import Measure

ALL = "all"
"""The entry for all sources together."""
LARGEST_LOSS = 700.0
"""The perplexity of a larger loss would overflow a float."""


@dataclass(frozen=True)
class SourceLoss:
    """How well the supervised tokens of one source were predicted."""

    nll_sum: float
    num_tokens: int
    num_correct: int
    """Tokens that the model ranked first."""

    @property
    def loss(self) -> float:
        """Mean cross-entropy per supervised token, in nats."""
        return self.nll_sum / self.num_tokens if self.num_tokens else math.nan

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, LARGEST_LOSS))

    @property
    def accuracy(self) -> float:
        return self.num_correct / self.num_tokens if self.num_tokens else math.nan

    def as_record(self) -> dict[str, float]:
        """The values that metrics and reports show."""
        names = {"loss": self.loss, "perplexity": self.perplexity, "accuracy": self.accuracy}
        return {**names, "tokens": self.num_tokens}


def held_out_loss(
    measure: Measure,
    split: Split,
    documents: DocumentTable,
    *,
    max_packs: int | None,
    micro_batch_packs: int,
    ranks: RankGroup = SINGLE,
    advance: Callable[[Batch], None] | None = None,
) -> dict[str, SourceLoss]:
    """The loss on the packs of a split, for each source in them and for all sources together.

    If only max_packs are measured, they are a fixed pseudo-random sample: neighboring packs are alike, since the
    longest documents are packed first. Each process measures its share of them.

    `advance` is called after every batch, equally often on every process; an exception from it ends the measurement.
    """
    num_sources = len(documents.sources)
    sums = np.zeros((3, num_sources))
    packs = Order(len(split), batch_packs=len(split), epochs=1, seed=0).batch(0)[:max_packs]
    for batch in shared_batches(split, packs, micro_batch_packs, ranks):
        nll_S, correct_S = measure(batch)
        source_S = _sources(batch, documents)
        for row, weights in enumerate((nll_S, np.ones(len(nll_S)), correct_S)):
            sums[row] += np.bincount(source_S, weights, minlength=num_sources)
        if advance is not None:
            advance(batch)
    sums = ranks.gather(sums.flatten()).sum(axis=0).reshape(sums.shape)
    losses = {
        name: SourceLoss(float(nll), int(tokens), int(correct))
        for name, (nll, tokens, correct) in zip(documents.sources, sums.T, strict=True)
        if tokens
    }
    nll, tokens, correct = sums.sum(axis=1)
    return {**losses, ALL: SourceLoss(float(nll), int(tokens), int(correct))}


def _sources(batch: Batch, documents: DocumentTable) -> NDArray[np.int64]:
    """Source number of each supervised token."""
    is_supervised_T = batch.targets_T != IGNORE
    if not batch.doc_ids:
        return np.zeros(0, np.int64)
    source_N = np.asarray(documents.source, np.int64)[list(batch.doc_ids)]
    source_S: NDArray[np.int64] = np.repeat(source_N, batch.doc_lengths)[is_supervised_T]
    return source_S
