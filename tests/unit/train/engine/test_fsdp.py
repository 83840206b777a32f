"""The same losses and weights on one process and on several that share the model."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sft.config.model import ModelConfig
from sft.config.train import TrainConfig
from sft.data.batches.sampler import Order
from sft.data.shards import Shards
from sft.model.neox.model import NeoX
from sft.model.objectives.next_token import NextToken
from sft.model.weight_files import StoredWeights
from sft.train.checkpoint.initial_weights import StartingWeights, starting_shape
from sft.train.checkpoint.tensors import StoredSlices, write_slices
from sft.train.distributed.rank_batches import shared_batches
from sft.train.distributed.ranks import RankGroup
from sft.train.engine.fsdp import make_mesh
from sft.train.engine.native import TorchEngine
from tests.support.configs import changed
from tests.support.ranks import run_ranks

MakeConfig = Callable[..., TrainConfig]
CPU = torch.device("cpu")
NUM_STEPS = 20
LR = 1e-3
WEIGHT_TOLERANCE = 2e-5
"""A thousandth of what 20 steps can move a weight: AdamW blows up the rounding of gradients that are next to zero."""

pytestmark = pytest.mark.usefixtures("one_thread")


def make_engine(config: TrainConfig, shards: Shards, size: int) -> TorchEngine:
    shape = starting_shape(config.model, shards)
    with torch.device("meta"):
        model = NeoX(shape)
    mesh = make_mesh(CPU, size, config.fsdp.shard_size) if size > 1 else None
    engine = TorchEngine(NextToken(model), config, CPU, mesh)
    engine.load(StartingWeights(config.model, shape, config.seed))
    return engine


def take_steps(ranks: RankGroup, engine: TorchEngine, config: TrainConfig, shards: Shards, steps: range) -> list[float]:
    """The losses of these steps."""
    split, losses = shards.split("train"), []
    order = Order(len(split), config.batch_packs, 50, config.seed)
    for step in steps:
        packs = order.batch(step)
        batches = list(shared_batches(split, packs, config.micro_batch_packs, ranks))
        num_supervised = int(split.num_supervised_P[packs].sum())
        for number, batch in enumerate(batches):
            engine.forward_backward(batch, num_supervised, is_last=number == len(batches) - 1)
        losses.append(engine.step(LR).loss_sum / num_supervised)
    return losses


def run(
    ranks: RankGroup, config: TrainConfig, shards_folder: str, out: str, steps: list[int], before: str | None
) -> Any:
    """Train, from the start or on from what `before` holds, and save."""
    shards = Shards.open(Path(shards_folder))
    engine = make_engine(config, shards, ranks.size)
    shape: ModelConfig = engine.model.config
    if before:
        shapes = {name: parameter.shape for name, parameter in NeoX(shape).named_parameters()}
        state = {"num_updates": steps[0], "loss_scale": {"value": 1.0, "num_good": 0}}
        engine.restore(StoredSlices(Path(before), StoredWeights(Path(before), shapes)), state)
    losses = take_steps(ranks, engine, config, shards, range(*steps))
    write_slices(engine.slices(), shape, Path(out), ranks.rank, ranks.size)
    ranks.gather([])
    return losses


def weights(folder: Path, shape: ModelConfig) -> dict[str, torch.Tensor]:
    shapes = {name: parameter.shape for name, parameter in NeoX(shape).named_parameters()}
    stored = StoredSlices(folder, StoredWeights(folder, shapes))
    return {
        f"{name}.{kind}": stored.flat(kind, name, 0, size.numel())
        for name, size in shapes.items()
        for kind in ("weight", "exp_avg", "exp_avg_sq")
    }


@pytest.fixture
def train(tiny_config: MakeConfig, tiny_shards: Path, tmp_path: Path) -> Callable[..., Any]:
    def trained(size: int, steps: tuple[int, int] = (0, NUM_STEPS), before: Path | None = None, **changes: Any) -> Any:
        config = changed(tiny_config(), **changes)
        out = tmp_path / f"{size}-{steps}-{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        results = run_ranks(size, run, config, str(tiny_shards), str(out), list(steps), before and str(before))
        assert all(losses == results[0] for losses in results)
        shape = starting_shape(config.model, Shards.open(tiny_shards))
        return results[0], out, weights(out, shape)

    return trained


@pytest.mark.parametrize(("size", "shard_size"), [(2, None), (4, None), (4, 2), (3, None), (2, 1)])
def test_losses_and_weights_are_those_of_one_process(size: int, shard_size: int | None, train: Any) -> None:
    expected, _, expected_weights = train(1)
    losses, _, found = train(size, fsdp__shard_size=shard_size)
    assert losses == pytest.approx(expected, rel=1e-6)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected_weights[name], rtol=1e-4, atol=WEIGHT_TOLERANCE, msg=name)


def test_a_run_goes_on_with_another_number_of_processes(train: Any) -> None:
    expected, _, expected_weights = train(1)
    losses, out = [], None
    for size, steps in ((1, (0, 6)), (4, (6, 12)), (2, (12, NUM_STEPS))):
        more, out, found = train(size, steps, out)
        losses += more
    assert losses == pytest.approx(expected, rel=1e-6)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected_weights[name], rtol=1e-4, atol=WEIGHT_TOLERANCE, msg=name)


def test_a_run_goes_on_with_the_same_bits_with_as_many_processes(train: Any) -> None:
    straight, _, expected = train(2)
    first, out, _ = train(2, (0, 9))
    second, _, found = train(2, (9, NUM_STEPS), out)
    assert first + second == straight
    assert [name for name, tensor in found.items() if not torch.equal(tensor, expected[name])] == []


WAYS = [(1, 1, None), (1, 4, None), (2, 1, None), (2, 2, None), (3, 1, None), (4, 1, 2)]


@pytest.mark.parametrize(("size", "micro_batch_packs", "shard_size"), WAYS[1:])
def test_the_gradient_of_a_step_does_not_depend_on_how_it_is_cut_up(
    size: int, micro_batch_packs: int, shard_size: int | None, train: Any
) -> None:
    """After one update AdamW's first moment is the clipped gradient, up to a factor."""
    expected_loss, _, expected = train(1, (0, 1), micro_batch_packs=1)
    loss, _, found = train(size, (0, 1), micro_batch_packs=micro_batch_packs, fsdp__shard_size=shard_size)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for name in (name for name in found if name.endswith(".exp_avg")):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-8, msg=name)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 2e-3), ("fp16", 2e-4)])
def test_half_precision_agrees_with_one_process_up_to_its_rounding(
    precision: str, tolerance: float, train: Any
) -> None:
    expected, _, _ = train(1, precision=precision)
    losses, _, _ = train(2, precision=precision)
    assert losses == pytest.approx(expected, rel=tolerance)


def spoil_gradient(_module: Any, _inputs: Any, hidden_TD: torch.Tensor) -> None:
    hidden_TD.register_hook(lambda gradient: gradient * math.inf)


def spoil(ranks: RankGroup, config: TrainConfig, shards_folder: str, where: str) -> Any:
    """One process meets a number that is none: did anybody's weights, moments or loss scale change?"""
    shards = Shards.open(Path(shards_folder))
    engine = make_engine(config, shards, ranks.size)
    take_steps(ranks, engine, config, shards, range(2))
    before = {(part.kind, part.name): part.tensor.clone() for part in engine.slices()}
    original = engine._objective.forward
    if ranks.rank == 1:
        if where == "loss":
            engine._objective.forward = lambda *batch, **more: {  # type: ignore[method-assign]
                name: total * math.nan for name, total in original(*batch, **more).items()
            }
        else:
            engine.model.register_forward_hook(spoil_gradient)
    (loss,) = take_steps(ranks, engine, config, shards, range(2, 3))
    same = all(torch.equal(part.tensor, before[part.kind, part.name]) for part in engine.slices())
    return [same, math.isfinite(loss), engine.state()["num_updates"]]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_number_that_is_none_on_one_process_reaches_no_weight_on_any(
    where: str, tiny_config: MakeConfig, tiny_shards: Path
) -> None:
    told = run_ranks(2, spoil, tiny_config(), str(tiny_shards), where)
    assert told == [[True, where == "gradient", 2]] * 2
