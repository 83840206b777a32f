"""The gate lets healthy arithmetic through and stops what other tests of a run would not notice."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sft.config.train import TrainConfig
from sft.data.batches import batch
from sft.data.batches.batch import Batch
from sft.data.shards import Pack, Shards
from sft.errors import NumericsError
from sft.model import attention
from sft.model.attention import Documents
from sft.train.checkpoint.rng import random_state
from sft.train.distributed.ranks import SINGLE, RankGroup
from sft.train.loop import train
from sft.train.monitor.records import read_records
from sft.train.numerics import gate, reference
from sft.train.numerics.gate import Check, angle, loss_error, pick, require_exact
from tests.support.configs import changed
from tests.support.models import make_engine
from tests.support.ranks import run_ranks
from tests.unit.train.engine.test_fsdp import make_engine as make_shared_engine

MakeConfig = Callable[..., TrainConfig]
NUM_CHECKS_OF_LOSSES, NUM_CHECKS = 5, 10
PRECISIONS = ["fp32", "bf16", "fp16"]
HEALTHY = attention._attend_per_document


@pytest.fixture(scope="module")
def shards(tiny_shards: Path) -> Shards:
    return Shards.open(tiny_shards)


def first_pack(shards: Shards) -> Pack:
    split = shards.split("train")
    return split[pick(split, range(len(split)))]


def checked(config: TrainConfig, shards: Shards) -> list[Check]:
    engine = make_engine(config, shards)
    return require_exact(engine.measure, engine.model, first_pack(shards), config.precision, SINGLE, "pack 0")


def masked(q_THE: Tensor, k_THE: Tensor, v_THE: Tensor, documents: Documents, num_ahead: int, scale: float) -> Tensor:
    """Attention that may look ahead, and with another softmax."""
    parts = []
    for part in zip(*(torch.split(tensor, list(documents.lengths)) for tensor in (q_THE, k_THE, v_THE)), strict=True):
        q, k, v = (tensor.transpose(0, 1)[None] for tensor in part)
        mask_TT = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril(num_ahead)
        parts.append(scaled_dot_product_attention(q, k, v, attn_mask=mask_TT, scale=scale)[0].transpose(0, 1))
    return torch.cat(parts)


def crosses_documents(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    return HEALTHY(q, k, v, Documents.of([documents.num_tokens]))


def starts_documents_early(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    if len(documents.lengths) == 1:
        return HEALTHY(q, k, v, documents)
    first, *others, last = documents.lengths
    return HEALTHY(q, k, v, Documents.of([first - 1, *others, last + 1]))


def sees_the_next_token(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    return masked(q, k, v, documents, num_ahead=1, scale=q.shape[-1] ** -0.5)


def scales_scores_wrongly(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    return masked(3 * q, k, v, documents, num_ahead=0, scale=1.0)


def forgets_the_last_document(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    out = HEALTHY(q, k, v, documents).clone()
    if len(documents.lengths) > 1:
        out[-documents.lengths[-1] :] = 0
    return out


@pytest.mark.parametrize("precision", PRECISIONS)
def test_healthy_arithmetic_passes_every_check_with_room(
    precision: str, tiny_config: MakeConfig, shards: Shards
) -> None:
    checks = checked(tiny_config(precision=precision), shards)
    assert len(checks) == NUM_CHECKS
    assert [check.what for check in checks if check.measured > check.bound / 4] == []
    if precision != "fp32":
        assert all(check.measured > 0 for check in checks[NUM_CHECKS_OF_LOSSES:]), "the reference is another arithmetic"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("kernel", "sign"),
    [
        (crosses_documents, "tokens that see ahead or other documents"),
        (starts_documents_early, "tokens that see ahead or other documents"),
        (sees_the_next_token, "tokens that see ahead or other documents"),
        (scales_scores_wrongly, "hidden states against fp32"),
        (forgets_the_last_document, "hidden states against fp32"),
    ],
)
def test_wrong_attention_is_refused_in_every_precision(
    kernel: Callable[..., Tensor],
    sign: str,
    precision: str,
    tiny_config: MakeConfig,
    shards: Shards,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "_attend_per_document", kernel)
    with pytest.raises(NumericsError) as caught:
        checked(tiny_config(precision=precision), shards)
    assert f"- {sign}: " in str(caught.value)
    assert str(caught.value).startswith(f"pack 0, sdpa per document, {precision}: ")
    assert caught.value.exit_code == 70


@pytest.mark.parametrize("shift", [-1, 1])
def test_mask_that_is_off_by_one_is_refused(
    shift: int, tiny_config: MakeConfig, shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(packs: Sequence[Pack], indices: Sequence[int] = ()) -> Batch:
        return batch.join([replace(pack, loss_mask_T=np.roll(pack.loss_mask_T, shift)) for pack in packs], indices)

    for module in (gate, reference):
        monkeypatch.setattr(module, "join", shifted)
    with pytest.raises(NumericsError, match=r"targets other than the tokens with loss: [1-9]"):
        checked(tiny_config(), shards)


def test_weights_that_are_not_numbers_are_named(tiny_config: MakeConfig, shards: Shards) -> None:
    engine = make_engine(tiny_config(), shards)
    name = "gpt_neox.layers.2.mlp.dense_h_to_4h.bias"
    with torch.no_grad():
        engine.model.get_parameter(name)[7] = torch.nan
    with pytest.raises(NumericsError, match=f"1 parameters hold values that are not finite: {name}"):
        require_exact(engine.measure, engine.model, first_pack(shards), "fp32", SINGLE, "pack 0")


@pytest.mark.parametrize(("precision", "is_refused"), [("fp32", False), ("bf16", False), ("fp16", True)])
def test_weights_too_large_for_fp16_are_refused_in_fp16_only(
    precision: str, is_refused: bool, tiny_config: MakeConfig, shards: Shards
) -> None:
    engine = make_engine(tiny_config(precision=precision), shards)
    with torch.no_grad():
        engine.model.gpt_neox.layers[3].mlp.dense_4h_to_h.weight.mul_(1e7)
    arguments: Any = (engine.measure, engine.model, first_pack(shards), precision, SINGLE, "pack 0")
    if not is_refused:
        require_exact(*arguments)
        return
    with pytest.raises(NumericsError, match=r"tokens whose loss is not finite: [1-9]"):
        require_exact(*arguments)


def test_gate_leaves_nothing_behind(tiny_config: MakeConfig, shards: Shards) -> None:
    engine = make_engine(tiny_config(precision="bf16"), shards)
    before = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    states = (random_state(), torch.get_float32_matmul_precision(), engine.model.activation_checkpointing)
    require_exact(engine.measure, engine.model, first_pack(shards), "bf16", SINGLE, "pack 0")
    assert (random_state(), torch.get_float32_matmul_precision(), engine.model.activation_checkpointing) == states
    assert [name for name, parameter in engine.model.named_parameters() if parameter.grad is not None] == []
    assert all(torch.equal(before[name], tensor) for name, tensor in engine.model.state_dict().items())


def shared_gate(ranks: RankGroup, config: TrainConfig, folder: str, kernel: str) -> Any:
    """What the gate says on one of several processes: the numbers, or the error."""
    attention._attend_per_document = globals()[kernel]  # type: ignore[assignment]
    shards = Shards.open(Path(folder))
    engine = make_shared_engine(config, shards, ranks.size)
    try:
        pack, precision = first_pack(shards), config.precision
        checks = require_exact(engine.measure, engine.model, pack, precision, ranks, "pack 0", is_shared=True)
    except NumericsError as error:
        return str(error)
    return [check.measured for check in checks]


@pytest.mark.parametrize("size", [2, 4])
def test_processes_that_share_the_weights_pass_together(size: int, tiny_config: MakeConfig, tiny_shards: Path) -> None:
    everybody = run_ranks(size, shared_gate, tiny_config(precision="bf16"), str(tiny_shards), "HEALTHY")
    assert everybody == [everybody[0]] * size
    assert len(everybody[0]) == NUM_CHECKS_OF_LOSSES


def test_processes_that_share_the_weights_refuse_together(tiny_config: MakeConfig, tiny_shards: Path) -> None:
    config = tiny_config(precision="bf16")
    everybody = run_ranks(2, shared_gate, config, str(tiny_shards), "crosses_documents")
    assert all("tokens that see ahead or other documents: " in text for text in everybody)


def test_run_with_wrong_attention_ends_before_its_first_step(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_attend_per_document", crosses_documents)
    config = tiny_config(max_steps=1)
    with pytest.raises(NumericsError, match="train pack"):
        train(config)
    assert [record["kind"] for record in read_records(Path(config.out) / "metrics.jsonl")] == ["start"]
    train(changed(config, health__numerics_gate=False))
    assert "step" in [record["kind"] for record in read_records(Path(config.out) / "metrics.jsonl")]


def test_gate_changes_no_bit_of_a_run_and_is_recorded(tiny_config: MakeConfig, tmp_path: Path) -> None:
    losses = []
    for is_on in (True, False):
        config = tiny_config(max_steps=3, health__numerics_gate=is_on, out=str(tmp_path / str(is_on)))
        train(config)
        records = read_records(Path(config.out) / "metrics.jsonl")
        losses.append([record["loss"] for record in records if record["kind"] == "step"])
        found = [record for record in records if record["kind"] == "gate"]
        assert len(found) == is_on
        if is_on:
            assert found[0]["kernel"] == "sdpa per document"
            assert len(found[0]["checks"]) == NUM_CHECKS
    assert losses[0] == losses[1]


def test_pick_prefers_a_pack_with_several_documents_that_carry_loss() -> None:
    def pack(*masks: list[int]) -> Pack:
        mask_T = np.concatenate(masks).astype(np.uint8)
        lengths_N = np.array([len(mask) for mask in masks])
        return Pack(mask_T + 5, mask_T, lengths_N, np.arange(len(masks)), int(mask_T.sum()))

    split: Any = [pack([0, 1, 1]), pack([0, 1], [0, 0]), pack([0, 1], [1, 0]), pack([0, 1], [0, 1])]
    assert pick(split, [0, 1, 2, 3]) == 3
    assert pick(split, [1, 0]) == 1


@pytest.mark.parametrize(("found", "expected", "error"), [(110.0, 100.0, 0.1), (1.5, 0.5, 0.1), (0.0, 0.0, 0.0)])
def test_error_of_a_loss_is_relative_but_in_nats_where_the_loss_is_small(
    found: float, expected: float, error: float
) -> None:
    assert loss_error(found, expected, 10) == pytest.approx(error)


@pytest.mark.parametrize(
    ("right", "expected"), [([2.0, 0], 0.0), ([0, 3.0], np.pi / 2), ([-1.0, 0], np.pi), ([1.0, 1e-5], 1e-5)]
)
def test_angle_is_exact_even_where_it_is_small(right: list[float], expected: float) -> None:
    assert angle(torch.tensor([1.0, 0.0]), torch.tensor(right)) == pytest.approx(expected, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize(("measured", "is_passed"), [(0.9, True), (1.0, True), (1.1, False), (float("nan"), False)])
def test_what_is_not_a_number_passes_no_check(measured: float, is_passed: bool) -> None:
    assert Check("loss", measured, 1.0).is_passed == is_passed
