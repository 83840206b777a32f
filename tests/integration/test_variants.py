"""Runs with adapters, noise and other choices are as exact as plain ones."""

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file

from sft.config.engine import DeepSpeedConfig, OptimizerConfig
from sft.config.model import LoraConfig
from sft.config.train import TrainConfig
from sft.errors import StopRequested
from sft.model.compile import compile_blocks
from sft.model.hf_folder import read_config
from sft.model.registry import parameter_shapes
from sft.model.weight_files import StoredWeights
from sft.train import setup
from sft.train.checkpoint.store import published
from sft.train.checkpoint.tensors import StoredSlices
from sft.train.engine.native import TorchEngine
from sft.train.loop import train
from sft.train.monitor.records import read_records
from tests.support.ranks import finished, fork_ranks

pytestmark = pytest.mark.usefixtures("one_thread")

MakeConfig = Callable[..., TrainConfig]
SHORT: dict[str, Any] = {"epochs": 1.0}
"""Six steps, saved after the fourth."""
NO_DECAY = OptimizerConfig(lr=1e-3, warmup_steps=3, weight_decay=0.1, decay_biases_and_norms=False)
VARIANTS: dict[str, dict[str, Any]] = {
    "adapters": {"lora": LoraConfig(rank=4)},
    "noise": {"neftune_alpha": 5.0},
    "no decay of biases": {"optimizer": NO_DECAY},
    "cheap recomputation": {"activation_checkpointing": "cheap"},
    "full recomputation": {"activation_checkpointing": "full"},
    "all of them in bf16": {
        "lora": LoraConfig(rank=4, targets=("query_key_value", "dense_h_to_4h")),
        "neftune_alpha": 5.0,
        "optimizer": NO_DECAY,
        "activation_checkpointing": "cheap",
        "precision": "bf16",
    },
}

of_every_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)


def losses(config: TrainConfig) -> list[float]:
    records = read_records(Path(config.out) / "metrics.jsonl")
    return [record["loss"] for record in records if record["kind"] == "step" and not record.get("superseded")]


def checkpoint(config: TrainConfig) -> Path:
    return published(Path(config.out) / "checkpoints")[0]


@of_every_variant
def test_several_processes_do_what_one_does(changes: dict[str, Any], tiny_config: MakeConfig, tmp_path: Path) -> None:
    alone, together = tiny_config(**SHORT, **changes), tiny_config(**SHORT, **changes, out=str(tmp_path / "together"))
    train(alone)
    finished(fork_ranks(2, lambda world, place: train(together, world=world, environ={}, meeting_place=place)))
    assert losses(together) == pytest.approx(losses(alone), rel=1e-6 if alone.precision == "fp32" else 1e-3)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_deepspeed_knows_noise_and_groups_too(stage: Literal[0, 1, 3], tiny_config: MakeConfig, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    changes = {**SHORT, **VARIANTS["noise"], **VARIANTS["no decay of biases"]}
    zero = {"engine": "deepspeed", "deepspeed": DeepSpeedConfig(zero_stage=stage)}
    alone, together = tiny_config(**changes), tiny_config(**changes, **zero, out=str(tmp_path / "together"))
    train(alone)
    finished(fork_ranks(2, lambda world, place: train(together, world=world, environ={}, meeting_place=place)))
    assert losses(together) == pytest.approx(losses(alone), rel=1e-6)
    shapes = parameter_shapes(read_config(checkpoint(alone)))
    found, expected = (StoredSlices(it, StoredWeights(it, shapes)) for it in map(checkpoint, (together, alone)))
    for name, shape in shapes.items():
        weights = (stored.flat("weight", name, 0, shape.numel()) for stored in (found, expected))
        # Within six steps, decay moves a norm's weight by 3e-4.
        torch.testing.assert_close(*weights, rtol=0, atol=2e-5)


def test_compiled_blocks_can_be_sharded_adapted_and_recomputed(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**VARIANTS["all of them in bf16"], "max_steps": 2}
    plain, fast = tiny_config(**changes), tiny_config(**changes, compile=True, out=str(tmp_path / "fast"))
    # All but writing and compiling C++, so that the bits stay the same.
    monkeypatch.setattr(setup, "compile_blocks", partial(compile_blocks, backend="aot_eager"))
    for config in (plain, fast):
        finished(
            fork_ranks(
                2, lambda world, place, config=config: train(config, world=world, environ={}, meeting_place=place)
            )
        )
    assert losses(fast) == losses(plain)


@of_every_variant
def test_a_stopped_run_ends_with_the_same_bits(
    changes: dict[str, Any], tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, stopped = tiny_config(**SHORT, **changes), tiny_config(**SHORT, **changes, out=str(tmp_path / "stopped"))
    train(straight)
    with monkeypatch.context() as asking:
        original = TorchEngine.step
        calls: list[float] = []

        def stepping(engine: TorchEngine, lr: float) -> Any:
            calls.append(lr)
            if len(calls) == 3:
                signal.raise_signal(signal.SIGTERM)
            return original(engine, lr)

        asking.setattr(TorchEngine, "step", stepping)
        with pytest.raises(StopRequested):
            train(stopped)
    train(stopped)
    assert losses(stopped) == losses(straight)
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (checkpoint(stopped) / name).read_bytes() == (checkpoint(straight) / name).read_bytes()


@pytest.mark.parametrize("name", ["adapters", "noise", "no decay of biases"])
def test_a_variant_is_another_run_than_the_plain_one(name: str, tiny_config: MakeConfig, tmp_path: Path) -> None:
    plain, variant = tiny_config(**SHORT), tiny_config(**SHORT, **VARIANTS[name], out=str(tmp_path / "variant"))
    for config in (plain, variant):
        train(config)
    assert losses(variant) != losses(plain)


@pytest.mark.parametrize("micro_batch_packs", [1, 4])
def test_noise_does_not_depend_on_the_micro_batch(
    micro_batch_packs: int, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    first = tiny_config(**SHORT, neftune_alpha=15.0)
    other = tiny_config(**SHORT, neftune_alpha=15.0, micro_batch_packs=micro_batch_packs, out=str(tmp_path / "other"))
    for config in (first, other):
        train(config)
    assert losses(other) == pytest.approx(losses(first), rel=1e-6)


def test_held_out_loss_is_measured_without_noise(tiny_config: MakeConfig, tmp_path: Path) -> None:
    """Before the first step the models are the same, so only noise could tell them apart."""
    plain = tiny_config(**SHORT, evaluation__every_steps=6, evaluation__at_start=True)
    noisy = tiny_config(
        **SHORT, evaluation__every_steps=6, evaluation__at_start=True, neftune_alpha=50.0, out=str(tmp_path / "noisy")
    )
    first = []
    for config in (plain, noisy):
        train(config)
        records = read_records(Path(config.out) / "metrics.jsonl")
        first.append(next(record["sources"] for record in records if record["kind"] == "eval"))
    assert first[0] == first[1]


def test_adapters_leave_the_weights_that_the_run_started_from(tiny_config: MakeConfig) -> None:
    config = tiny_config(**SHORT, lora=LoraConfig(rank=4))
    train(config)
    first, last = (load_file(path / "model.safetensors") for path in published(Path(config.out) / "checkpoints")[:2])
    moved = [name for name, tensor in last.items() if not tensor.equal(first[name])]
    assert len(moved) == 4 * 4 * 2
    assert all(".lora_" in name for name in moved)
