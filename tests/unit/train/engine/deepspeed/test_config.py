"""What DeepSpeed is told, and what is refused before it is asked; these tests do not need it."""

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sft.config.engine import DeepSpeedConfig, OptimizerConfig
from sft.config.fields import problems
from sft.errors import ConfigError
from sft.model.objectives.next_token import NextToken
from sft.train.engine.deepspeed.config import deepspeed_json
from sft.train.engine.deepspeed.engine import DeepSpeedEngine
from tests.support.deepspeed import CPU, MakeConfig, make_engine, zero


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stage_and_clipping_are_those_of_the_run(stage: int, tiny_config: MakeConfig) -> None:
    config = zero(tiny_config(optimizer=OptimizerConfig(clip_norm=0.7)), stage)
    told = deepspeed_json(config, CPU)
    assert (told["zero_optimization"]["stage"], told["gradient_clipping"]) == (stage, 0.7)
    assert "offload_optimizer" not in told["zero_optimization"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_weights_are_fp32_whatever_the_precision_is(precision: Any, tiny_config: MakeConfig) -> None:
    told = deepspeed_json(zero(tiny_config(precision=precision), 1), CPU)
    assert not {"fp16", "bf16", "torch_autocast", "amp", "data_types", "communication_data_type"} & told.keys()


@pytest.mark.parametrize(("device", "is_pinned"), [("cpu", False), ("cuda", True)])
def test_offloading_pins_memory_where_there_is_a_gpu(device: str, is_pinned: bool, tiny_config: MakeConfig) -> None:
    told = deepspeed_json(zero(tiny_config(), 2, offload=True), torch.device(device))
    assert told["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": is_pinned}


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (DeepSpeedConfig(zero_stage=4), "zero_stage=4"),
        (DeepSpeedConfig(zero_stage=-1), "zero_stage=-1"),
        (DeepSpeedConfig(zero_stage=0, offload_optimizer=True), "offload_optimizer"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: DeepSpeedConfig, problem: str) -> None:
    assert [text.startswith(problem) for text in problems(settings)] == [True]


def test_missing_package_is_named_with_what_to_do(tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    model = make_engine(tiny_config()).model
    with pytest.raises(ConfigError, match="install the extra `deepspeed`"):
        DeepSpeedEngine(NextToken(model), replace(tiny_config(), engine="deepspeed"), CPU)


def test_version_that_lets_bad_gradients_through_is_refused(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = SimpleNamespace(__version__="0.19.4", __version_major__=0, __version_minor__=19, __version_patch__=4)
    monkeypatch.setitem(sys.modules, "deepspeed", old)
    model = make_engine(tiny_config()).model
    with pytest.raises(ConfigError, match=r"version 0\.19\.4, expected 0\.19\.8 or newer"):
        DeepSpeedEngine(NextToken(model), replace(tiny_config(), engine="deepspeed"), CPU)
