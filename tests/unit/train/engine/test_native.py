import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sft.config.engine import OptimizerConfig
from sft.config.model import ActivationCheckpointing, LoraConfig
from sft.config.train import TrainConfig
from sft.data.batches.batch import IGNORE, micro_batches
from sft.data.shards import Shards, Split
from sft.model.attention import Documents
from sft.model.lora import is_adapter
from sft.model.weight_files import StoredWeights
from sft.train.checkpoint.tensors import StoredSlices, write_slices
from sft.train.engine.native import TorchEngine
from tests.support.models import make_engine

MakeConfig = Callable[..., TrainConfig]
PACKS = [0, 3, 5, 8]


@pytest.fixture
def shards(tiny_shards: Path) -> Shards:
    return Shards.open(tiny_shards)


def accumulate(engine: TorchEngine, split: Split, micro_batch_packs: int) -> int:
    num_supervised = int(split.num_supervised_P[PACKS].sum())
    for batch in micro_batches(split, PACKS, micro_batch_packs):
        engine.forward_backward(batch, num_supervised, is_last=True)
    return num_supervised


def gradients(engine: TorchEngine) -> dict[str, torch.Tensor]:
    """The accumulated gradients of the mean loss."""
    scale = engine._step_state.gradient_scale
    return {name: p.grad / scale for name, p in engine.model.named_parameters() if p.grad is not None}


def weights(engine: TorchEngine) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in engine.model.named_parameters()}


def assert_same_bits(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


@pytest.mark.parametrize("micro_batch_packs", [1, 2, 3])
def test_gradient_of_a_step_does_not_depend_on_the_micro_batch(
    micro_batch_packs: int, tiny_config: MakeConfig, shards: Shards
) -> None:
    whole, parts = make_engine(tiny_config(), shards), make_engine(tiny_config(), shards)
    accumulate(whole, shards.split("train"), len(PACKS))
    accumulate(parts, shards.split("train"), micro_batch_packs)
    expected = gradients(whole)
    for name, gradient in gradients(parts).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6)
    assert parts.step(1e-3).loss_sum == pytest.approx(whole.step(1e-3).loss_sum, rel=1e-6)


def test_gradient_is_that_of_the_mean_over_supervised_tokens(tiny_config: MakeConfig, shards: Shards) -> None:
    """The reference is cross-entropy over all logits, written out, without any chunk, scale or normaliser of ours."""
    engine, reference = make_engine(tiny_config(), shards), make_engine(tiny_config(), shards)
    split = shards.split("train")
    num_supervised = accumulate(engine, split, 1)
    model, loss = reference.model, torch.zeros(())
    for batch in micro_batches(split, PACKS, 1):
        starts = [sum(batch.doc_lengths[:number]) for number in range(len(batch.doc_lengths))]
        for start, length in zip(starts, batch.doc_lengths, strict=True):
            ids_T, targets_T = (
                torch.from_numpy(row[start : start + length]) for row in (batch.input_ids_T, batch.targets_T)
            )
            logits_TV = model.logits(model(ids_T, Documents.of([length])))
            loss = loss + torch.nn.functional.cross_entropy(logits_TV, targets_T, ignore_index=IGNORE, reduction="sum")
    (loss / num_supervised).backward()
    found = gradients(engine)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-5, atol=1e-6)
    result = engine.step(1e-3)
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None))
    assert (result.loss_sum, result.grad_norm) == pytest.approx((loss.item(), norm), rel=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("where", "value"), [("loss", math.nan), ("gradient", math.inf)])
def test_non_finite_numbers_never_reach_the_weights(
    where: str, value: float, precision: str, tiny_config: MakeConfig, shards: Shards
) -> None:
    engine, split = make_engine(tiny_config(precision=precision), shards), shards.split("train")
    accumulate(engine, split, 2)
    engine.step(1e-3)
    before, moments = weights(engine), engine._optimizer.state_dict()["state"][3]["exp_avg"].clone()
    accumulate(engine, split, 2)
    if where == "loss":
        engine._step_state.add({"loss": torch.tensor(value)})
    else:
        gradient = engine.model.head_weight.grad
        assert gradient is not None
        gradient[3, 5] = value
    assert engine.step(1e-3).is_skipped
    assert_same_bits(before, weights(engine))
    assert torch.equal(moments, engine._optimizer.state_dict()["state"][3]["exp_avg"])
    accumulate(engine, split, 2)
    assert not engine.step(1e-3).is_skipped
    assert all(bool(tensor.isfinite().all()) for tensor in weights(engine).values())


def test_loss_scale_halves_on_overflow_down_to_one_and_doubles_after_its_window(
    tiny_config: MakeConfig, shards: Shards
) -> None:
    config = tiny_config(precision="fp16", fp16__initial_scale_power=2, fp16__scale_window=2)
    engine, split = make_engine(config, shards), shards.split("train")
    scales = []
    for overflows in (True, True, True, True, False, False, False):
        accumulate(engine, split, 4)
        if overflows:
            next(engine.model.parameters()).grad[0, 0] = math.inf  # type: ignore[index]
        result = engine.step(1e-4)
        assert result.is_skipped == overflows
        scales.append(result.scale)
    assert scales == [4, 2, 1, 1, 1, 1, 2]


@pytest.mark.parametrize("clip_norm", [0.0, 1e9, 0.5])
def test_clipping_limits_the_norm_of_the_mean_gradient(
    clip_norm: float, tiny_config: MakeConfig, shards: Shards
) -> None:
    """With zero betas AdamW's first moment is the gradient that reached it."""
    settings = OptimizerConfig(betas=(0.0, 0.0), clip_norm=clip_norm)
    engine = make_engine(tiny_config(optimizer=settings), shards)
    accumulate(engine, shards.split("train"), 4)
    grad_norm = engine.step(1e-3).grad_norm
    used = math.sqrt(sum(float(m["exp_avg"].square().sum()) for m in engine._optimizer.state.values()))
    assert used == pytest.approx(min(clip_norm or grad_norm, grad_norm), rel=1e-5)
    assert grad_norm > 0.5


def test_weight_decay_reaches_every_parameter_and_the_rate_is_the_given_one(
    tiny_config: MakeConfig, shards: Shards
) -> None:
    """A gradient of zero leaves nothing but decay: w × (1 - lr × decay)."""
    engine = make_engine(tiny_config(optimizer=OptimizerConfig(weight_decay=0.1, lr=1.0)), shards)
    for parameter in engine.model.parameters():
        parameter.data.fill_(2.0)
        parameter.grad = torch.zeros_like(parameter)
    engine.step(0.5)
    assert all(bool((tensor == 2.0 * (1 - 0.5 * 0.1)).all()) for tensor in weights(engine).values())


def test_biases_and_norms_do_not_decay_if_the_config_says_so(tiny_config: MakeConfig, shards: Shards) -> None:
    settings = OptimizerConfig(weight_decay=0.1, lr=1.0, decay_biases_and_norms=False)
    engine = make_engine(tiny_config(optimizer=settings), shards)
    for parameter in engine.model.parameters():
        parameter.data.fill_(2.0)
        parameter.grad = torch.zeros_like(parameter)
    engine.step(0.5)
    for tensor in weights(engine).values():
        assert bool((tensor == (2.0 if tensor.ndim == 1 else 2.0 * (1 - 0.5 * 0.1))).all())


def test_micro_batch_without_supervised_tokens_adds_nothing(tiny_config: MakeConfig, shards: Shards) -> None:
    engine, other = make_engine(tiny_config(), shards), make_engine(tiny_config(), shards)
    split = shards.split("train")
    accumulate(engine, split, 4)
    num_supervised = accumulate(other, split, 4)
    (batch,) = micro_batches(split, [1], 1)
    unsupervised = replace(batch, targets_T=batch.targets_T * 0 + IGNORE)
    other.forward_backward(unsupervised, num_supervised, is_last=True)
    assert engine.step(1e-3) == other.step(1e-3)
    assert_same_bits(weights(engine), weights(other))


@pytest.mark.parametrize("policy", ["cheap", "full"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_activation_checkpointing_changes_no_bit(
    policy: ActivationCheckpointing, precision: str, tiny_config: MakeConfig, shards: Shards
) -> None:
    plain, recomputing = (make_engine(tiny_config(precision=precision), shards) for _ in range(2))
    recomputing.model.activation_checkpointing = policy
    for engine in (plain, recomputing):
        accumulate(engine, shards.split("train"), 2)
    assert_same_bits(gradients(plain), gradients(recomputing))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_restored_engine_takes_the_same_next_step(
    precision: str, tiny_config: MakeConfig, shards: Shards, tmp_path: Path
) -> None:
    config = tiny_config(precision=precision, fp16__scale_window=1)
    engine, split = make_engine(config, shards), shards.split("train")
    accumulate(engine, split, 2)
    engine.step(1e-3)
    write_slices(engine.slices(), engine.model.config, tmp_path, rank=0, size=1)
    saved = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = make_engine(replace(config, seed=9), shards)
    shapes = {name: parameter.shape for name, parameter in engine.model.named_parameters()}
    other.restore(StoredSlices(tmp_path, StoredWeights(tmp_path, shapes)), json.loads(json.dumps(engine.state())))
    for each in (engine, other):
        accumulate(each, split, 2)
    assert engine.step(1e-3) == other.step(1e-3)
    assert_same_bits(weights(engine), weights(other))
    # Restored tensors must be copies: a step must not write through to the checkpoint that they came from.
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == saved


def test_checkpoint_size_is_known_before_it_is_written(tiny_config: MakeConfig, shards: Shards, tmp_path: Path) -> None:
    engine = make_engine(tiny_config(), shards)
    accumulate(engine, shards.split("train"), 2)
    engine.step(1e-3)
    write_slices(engine.slices(), engine.model.config, tmp_path, rank=0, size=1)
    written = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert written == pytest.approx(engine.checkpoint_bytes, rel=0.02)


def test_adapters_are_trained_and_saved_and_nothing_else_moves(tiny_config: MakeConfig, shards: Shards) -> None:
    engine = make_engine(tiny_config(lora=LoraConfig(rank=2)), shards)
    before = weights(engine)
    for _ in range(2):  # in the first step A stands still, because B is zero
        accumulate(engine, shards.split("train"), 2)
        engine.step(1e-3)
    moved = {name for name, tensor in weights(engine).items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if is_adapter(name)}
    slices = list(engine.slices())
    assert {part.name for part in slices if part.kind == "weight"} == before.keys()
    assert {part.name for part in slices if part.kind == "exp_avg"} == moved
    assert engine.checkpoint_bytes == sum(part.tensor.nbytes for part in slices)
