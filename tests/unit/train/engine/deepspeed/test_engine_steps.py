"""What a step of the DeepSpeed engine does with numbers that are none, with the loss scale, and with long gradients."""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from sft.config.engine import OptimizerConfig
from sft.config.train import TrainConfig
from tests.support.deepspeed import (
    MakeConfig,
    assert_same_bits,
    make_engine,
    preload,
    save,
    saved_tensors,
    take_step,
    zero,
)
from tests.support.ranks import run_ranks

if find_spec("deepspeed") is None:
    pytest.skip("deepspeed is not installed (extra `deepspeed`)", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("one_thread")

WAYS = [(0, False), (1, False), (1, True), (2, False), (2, True), (3, False), (3, True)]
"""Stages, with and without offloading."""


@pytest.fixture(autouse=True, scope="module")
def _preloaded() -> None:
    preload()


@contextmanager
def spoiled(engine: Any, where: str, value: float) -> Iterator[None]:
    """Within the block the loss is the value, or every gradient of it, each without the other."""

    def spoil(_module: Any, _inputs: Any, sums: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if where == "loss":
            return {**sums, "loss": sums["loss"] + value}
        sums["loss"].register_hook(lambda gradient: gradient * value)
        return sums

    handle = engine._engine.module.register_forward_hook(spoil)
    yield
    handle.remove()


def digest(engine: Any) -> str:
    """Of the weights that this process computes with; in stage 3 it has them only while it does."""
    tensors = [parameter.detach().numpy() for parameter in engine.model.parameters() if not hasattr(parameter, "ds_id")]
    return hashlib.sha256(b"".join(array.tobytes() for array in tensors)).hexdigest()


def skip_a_step(ranks: Any, config: TrainConfig, out: str, where: str, value: float) -> Any:
    """A good step, one that is spoiled in the last process only, and a good one; then the same without the spoiled."""
    engine = make_engine(config)
    take_step(engine, config, 0, ranks)
    save(engine, Path(out) / "before", ranks)
    before = digest(engine)
    if ranks.rank == ranks.size - 1:
        with spoiled(engine, where, value):
            skipped = take_step(engine, config, 1, ranks)
    else:
        skipped = take_step(engine, config, 1, ranks)
    save(engine, Path(out) / "after", ranks)
    same = digest(engine) == before
    following = take_step(engine, config, 2, ranks)
    ranks.gather([])
    straight = make_engine(config)
    take_step(straight, config, 0, ranks)
    return skipped["is_skipped"], same, following == take_step(straight, config, 2, ranks), following["is_skipped"]


@pytest.mark.parametrize(("stage", "offload"), WAYS)
@pytest.mark.parametrize(("where", "value"), [("loss", math.nan), ("gradient", math.inf)])
def test_what_is_no_number_in_one_process_reaches_no_weight_of_any(
    where: str, value: float, stage: int, offload: bool, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    config = zero(tiny_config(micro_batch_packs=1), stage, offload=offload)
    for is_skipped, is_same, is_next_the_same, is_next_skipped in run_ranks(
        2, skip_a_step, config, str(tmp_path), where, value
    ):
        assert is_skipped
        assert is_same
        assert is_next_the_same
        assert not is_next_skipped
    assert_same_bits(saved_tensors(config, tmp_path / "before"), saved_tensors(config, tmp_path / "after"))


def overflow(ranks: Any, config: TrainConfig) -> Any:
    engine = make_engine(config)
    results = []
    for step, overflows in enumerate((True, True, True, True, False, False, False)):
        if overflows and ranks.rank == 1:
            with spoiled(engine, "gradient", math.inf):
                results.append(take_step(engine, config, step, ranks))
        else:
            results.append(take_step(engine, config, step, ranks))
    return [(result["scale"], result["is_skipped"]) for result in results]


@pytest.mark.parametrize(("stage", "offload"), [(0, False), (1, False), (2, True), (3, False)])
def test_loss_scale_halves_on_overflow_down_to_one_and_doubles_after_its_window(
    stage: int, offload: bool, tiny_config: MakeConfig
) -> None:
    config = tiny_config(precision="fp16", fp16__initial_scale_power=2, fp16__scale_window=2)
    expected = [[4, True], [2, True], [1, True], [1, True], [1, False], [1, False], [2, False]]
    assert run_ranks(2, overflow, zero(config, stage, offload=offload)) == [expected, expected]


def one_step(ranks: Any, config: TrainConfig, out: str) -> Any:
    engine = make_engine(config)
    result = take_step(engine, config, 0, ranks)
    save(engine, Path(out), ranks)
    return result["grad_norm"]


@pytest.mark.parametrize(("stage", "offload"), [(0, False), (1, False), (2, True), (3, False)])
def test_clipping_limits_the_norm_of_the_mean_gradient(
    stage: int, offload: bool, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    """With zero betas AdamW's first moment is the gradient that reached it."""
    used = {}
    for clip_norm in (0.0, 0.5):
        config = tiny_config(optimizer=OptimizerConfig(betas=(0.0, 0.0), clip_norm=clip_norm), micro_batch_packs=1)
        out = tmp_path / str(clip_norm)
        grad_norm, _ = run_ranks(2, one_step, zero(config, stage, offload=offload), str(out))
        tensors = saved_tensors(config, out)
        moments = [tensor.double() for name, tensor in tensors.items() if name.endswith(" exp_avg")]
        used[clip_norm] = float(torch.cat(moments).norm())
    assert grad_norm > 1
    assert used == {0.0: pytest.approx(grad_norm, rel=1e-5), 0.5: pytest.approx(0.5, rel=1e-5)}
