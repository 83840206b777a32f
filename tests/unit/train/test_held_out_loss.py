import math
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from sft.config.model import InitConfig
from sft.data.batches.batch import IGNORE, join
from sft.data.batches.sampler import Order
from sft.data.shards import Shards
from sft.model.attention import Documents
from sft.model.neox.model import NeoX
from sft.model.objectives.next_token import NextToken
from sft.train.checkpoint.initial_weights import starting_shape
from sft.train.engine.forward import measure as measure_batch
from sft.train.held_out_loss import ALL, SourceLoss, held_out_loss
from tests.support.models import starting_model

INIT = InitConfig(weights="scratch", preset="tiny", vocab_size=64)


@pytest.fixture(scope="module")
def shards(tiny_shards: Path) -> Shards:
    return Shards.open(tiny_shards)


@pytest.fixture(scope="module")
def model(shards: Shards) -> NeoX:
    return starting_model(INIT, starting_shape(INIT, shards))


def measure(model: NeoX, shards: Shards, micro_batch_packs: int, max_packs: int | None = None) -> dict[str, SourceLoss]:
    return held_out_loss(
        lambda batch: measure_batch(NextToken(model), torch.device("cpu"), nullcontext(), batch),
        shards.split("valid"),
        shards.documents,
        max_packs=max_packs,
        micro_batch_packs=micro_batch_packs,
    )


@pytest.mark.parametrize("micro_batch_packs", [1, 4])
def test_each_source_gets_the_loss_of_its_own_documents(micro_batch_packs: int, model: NeoX, shards: Shards) -> None:
    """The reference runs every document alone and looks its source up in the table."""
    expected: dict[str, list[float]] = defaultdict(lambda: [0.0, 0, 0])
    split, table = shards.split("valid"), shards.documents
    for pack in (split[index] for index in range(len(split))):
        batch = join([pack])
        for doc_id, place in pack.documents():
            ids_T, targets_T = torch.from_numpy(batch.input_ids_T[place]), torch.from_numpy(batch.targets_T[place])
            with torch.no_grad():
                logits_TV = model.logits(model(ids_T, Documents.of([len(ids_T)])))
            nll = cross_entropy(logits_TV, targets_T, ignore_index=IGNORE, reduction="sum").item()
            correct = int((logits_TV.argmax(-1) == targets_T).sum())
            for name in (table.sources[table.source[doc_id]], ALL):
                sums = expected[name]
                sums[0], sums[1], sums[2] = sums[0] + nll, sums[1] + int((targets_T >= 0).sum()), sums[2] + correct
    found = measure(model, shards, micro_batch_packs)
    assert found.keys() == expected.keys() == {"alpha", "beta", ALL}
    for name, (nll, num_tokens, num_correct) in expected.items():
        assert found[name].nll_sum == pytest.approx(nll, rel=1e-5)
        assert (found[name].num_tokens, found[name].num_correct) == (num_tokens, num_correct)


def test_a_part_of_the_packs_is_picked_from_all_over_the_split(model: NeoX, shards: Shards) -> None:
    supervised = shards.split("valid").num_supervised_P
    picked = Order(len(supervised), len(supervised), epochs=1, seed=0).batch(0)[:3]
    assert picked != [0, 1, 2]
    assert measure(model, shards, 2, max_packs=3)[ALL].num_tokens == supervised[picked].sum()


def test_measuring_leaves_no_gradient(model: NeoX, shards: Shards) -> None:
    measure(model, shards, 2, max_packs=1)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_numbers_of_a_source() -> None:
    source = SourceLoss(nll_sum=math.log(2) * 8, num_tokens=8, num_correct=6)
    assert (source.loss, source.perplexity, source.accuracy) == pytest.approx((math.log(2), 2.0, 0.75))
    assert math.isnan(SourceLoss(0.0, 0, 0).loss)
    assert math.isfinite(SourceLoss(1e9, 1, 0).perplexity)
