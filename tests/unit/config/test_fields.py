"""The schema: every setting is read, no default contradicts itself, every mistake is named."""

import dataclasses
import re
import typing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sft.config import data, engine, inference, model, train
from sft.config.data import BuildConfig, SourceConfig
from sft.config.engine import Fp16Config, FsdpConfig, OptimizerConfig
from sft.config.fields import problems as all_problems
from sft.config.inference import ChatConfig, EvalConfig, ExportConfig, GenerationConfig
from sft.config.model import InitConfig, LoraConfig, ModelConfig
from sft.config.train import (
    CheckpointConfig,
    DistributedConfig,
    EvaluationConfig,
    HangConfig,
    HealthConfig,
    ProfilerConfig,
    TrainConfig,
)
from tests.support.configs import changed

ROOT = Path(__file__).parents[3]
MODULES = (data, engine, inference, model, train)
CLASSES = [
    kind for module in MODULES for kind in vars(module).values() if getattr(kind, "__module__", "") == module.__name__
]
CLASSES = [kind for kind in CLASSES if dataclasses.is_dataclass(kind)]
FIELDS = [(kind, field.name) for kind in CLASSES for field in dataclasses.fields(kind)]

SOURCE = SourceConfig("Talk", "someone/talk", ("talk*.jsonl",), "CC0-1.0", "Someone, 2023", "card")
BUILD = BuildConfig({"talk": SOURCE}, "raw", "tokenizer.json", "shards")
TRAIN = TrainConfig("shards", InitConfig("base"), "runs/first")
MODEL = ModelConfig(vocab_size=512, hidden_size=64, num_layers=2, num_heads=4, intermediate_size=256)
NAN, INF = float("nan"), float("inf")

# What a person may get wrong, and the setting that the message must name.
MISTAKES: list[tuple[Any, dict[str, Any], str]] = [
    (SOURCE, {"weight": 0.0}, "weight"),
    (SOURCE, {"weight": 1.5}, "weight"),
    (SOURCE, {"weight": -1.0}, "weight"),
    (SOURCE, {"weight": NAN}, "weight"),
    (SOURCE, {"max_rows": 0}, "max_rows"),
    (SOURCE, {"files": ()}, "files"),
    (SOURCE, {"max_drop_share": 1.1}, "max_drop_share"),
    (SOURCE, {"max_drop_share": NAN}, "max_drop_share"),
    (SOURCE, {"max_damaged_share": -0.1}, "max_damaged_share"),
    (SOURCE, {"num_conversations": 0}, "num_conversations"),
    (SOURCE, {"max_characters": 0}, "max_characters"),
    (SOURCE, {"min_answer_characters": -1}, "min_answer_characters"),
    (SOURCE, {"epochs": 0.5}, "epochs"),
    (SOURCE, {"epochs": 101.0}, "epochs"),
    (SOURCE, {"epochs": NAN}, "epochs"),
    (SOURCE, {"near_duplicates": 0.4}, "near_duplicates"),
    (SOURCE, {"near_duplicates": 1.1}, "near_duplicates"),
    (SOURCE, {"near_duplicates": NAN}, "near_duplicates"),
    (BUILD, {"valid_conversations": 0}, "valid_conversations"),
    (BUILD, {"tokenizer_check_share": 1.1}, "tokenizer_check_share"),
    (BUILD, {"tokenizer_check_share": NAN}, "tokenizer_check_share"),
    (BUILD, {"max_row_bytes": 0}, "max_row_bytes"),
    (BUILD, {"evaluation_ngram_words": 4}, "evaluation_ngram_words"),
    (BUILD, {"seed": -1}, "seed"),
    (BUILD, {"seed": 1 << 64}, "seed"),
    (BUILD, {"sources": {"talk": replace(SOURCE, enabled=False)}}, "sources"),
    (BUILD, {"sources": {}}, "sources"),
    (BUILD, {"seq_len": 15}, "seq_len"),
    (BUILD, {"seq_len": 65536}, "seq_len"),
    (BUILD, {"valid_share": 0.5}, "valid_share"),
    (BUILD, {"valid_share": -0.1}, "valid_share"),
    (BUILD, {"valid_share": NAN}, "valid_share"),
    (BUILD, {"packs_per_shard": 0}, "packs_per_shard"),
    (BUILD, {"workers": -1}, "workers"),
    (MODEL, {"num_heads": 5}, "hidden_size"),
    (MODEL, {"rotary_pct": 0.2}, "rotary_pct"),
    (InitConfig("scratch"), {}, "weights=scratch"),
    (InitConfig("base"), {"vocab_size": 512}, "vocab_size"),
    (OptimizerConfig(), {"lr": 0.0}, "lr"),
    (OptimizerConfig(), {"lr": -1e-5}, "lr"),
    (OptimizerConfig(), {"betas": (1.0, 0.9)}, "betas"),
    (OptimizerConfig(), {"betas": (0.9, -0.1)}, "betas"),
    (OptimizerConfig(), {"eps": -1e-8}, "eps"),
    (OptimizerConfig(), {"eps": 0.0}, "eps"),
    (SOURCE, {"files": ("/data/*.json",)}, "files"),
    (SOURCE, {"files": ("",)}, "files"),
    (Fp16Config(), {"initial_scale_power": 5000}, "initial_scale_power"),
    (OptimizerConfig(), {"weight_decay": -0.1}, "weight_decay"),
    (OptimizerConfig(), {"clip_norm": -1.0}, "clip_norm"),
    (OptimizerConfig(), {"warmup_steps": -1}, "warmup_steps"),
    (OptimizerConfig(), {"min_lr_ratio": -0.1}, "min_lr_ratio"),
    (OptimizerConfig(), {"min_lr_ratio": 0.1, "schedule": "constant"}, "min_lr_ratio"),
    (TRAIN, {"batch_packs": 0}, "batch_packs"),
    (TRAIN, {"micro_batch_packs": 0}, "micro_batch_packs"),
    (TRAIN, {"micro_batch_packs": 3}, "batch_packs"),
    (TRAIN, {"epochs": 0.0}, "epochs"),
    (TRAIN, {"max_steps": 0}, "max_steps"),
    (CheckpointConfig(), {"every_steps": 0}, "every_steps"),
    (CheckpointConfig(), {"keep_last": 1}, "keep_last"),
    (CheckpointConfig(), {"keep_best": -1}, "keep_best"),
    (EvaluationConfig(), {"every_steps": -1}, "every_steps"),
    (EvaluationConfig(), {"max_packs": 0}, "max_packs"),
    (HealthConfig(), {"max_bad_steps": 0}, "max_bad_steps"),
    (HealthConfig(), {"max_loss": 0.0}, "max_loss"),
    (ProfilerConfig(), {"steps": -1}, "steps"),
    (ProfilerConfig(), {"start_step": 0}, "start_step"),
    (HealthConfig(), {"spike_window": -1}, "spike_window"),
    (HealthConfig(), {"spike_sigmas": 0.0}, "spike_sigmas"),
    (HangConfig(), {"timeout_s": -1.0}, "timeout_s"),
    (DistributedConfig(), {"timeout_s": 0.0}, "timeout_s"),
    (FsdpConfig(), {"shard_size": 0}, "shard_size"),
    (GenerationConfig(), {"max_new_tokens": 0}, "max_new_tokens"),
    (GenerationConfig(), {"temperature": -0.1}, "temperature"),
    (GenerationConfig(), {"top_p": 0.0}, "top_p"),
    (GenerationConfig(), {"top_p": 1.1}, "top_p"),
    (OptimizerConfig(), {"lr": NAN}, "lr"),
    (OptimizerConfig(), {"lr": INF}, "lr"),
    (OptimizerConfig(), {"eps": NAN}, "eps"),
    (OptimizerConfig(), {"weight_decay": NAN}, "weight_decay"),
    (OptimizerConfig(), {"clip_norm": NAN}, "clip_norm"),
    (OptimizerConfig(), {"min_lr_ratio": 2.0}, "min_lr_ratio"),
    (TRAIN, {"epochs": NAN}, "epochs"),
    (TRAIN, {"epochs": INF}, "epochs"),
    (TRAIN, {"seed": -1}, "seed"),
    (TRAIN, {"seed": 1 << 64}, "seed"),
    (Fp16Config(), {"scale_window": 0}, "scale_window"),
    (TRAIN, {"stop_margin_s": -1.0}, "stop_margin_s"),
    (EvalConfig(), {"micro_batch_packs": 0}, "micro_batch_packs"),
    (EvalConfig(), {"max_packs": 0}, "max_packs"),
    (ExportConfig(), {"max_shard_bytes": 0}, "max_shard_bytes"),
    (MODEL, {"num_heads": 0}, "num_heads"),
    (MODEL, {"num_layers": 0}, "num_layers"),
    (MODEL, {"vocab_size": 0}, "vocab_size"),
    (GenerationConfig(), {"temperature": NAN}, "temperature"),
    (TRAIN, {"neftune_alpha": -1.0}, "neftune_alpha"),
    (TRAIN, {"lora": LoraConfig(rank=1), "engine": "deepspeed"}, "lora.rank"),
    (TRAIN, {"compile": True, "engine": "deepspeed"}, "compile"),
    (LoraConfig(), {"rank": -1}, "rank"),
    (LoraConfig(), {"alpha": 0.0}, "alpha"),
    (LoraConfig(), {"targets": ()}, "targets"),
    (LoraConfig(), {"targets": ("dense", "dense")}, "targets"),
]


def problems(settings: Any) -> list[str]:
    return list(all_problems(settings))


def label(value: object) -> str | None:
    if isinstance(value, dict):
        return ",".join(f"{name}={setting}" for name, setting in value.items())[:40]
    return type(value).__name__ if dataclasses.is_dataclass(value) else None


@pytest.mark.parametrize(("good", "change", "named"), MISTAKES, ids=label)
def test_a_value_out_of_range_is_named(good: Any, change: dict[str, Any], named: str) -> None:
    (problem,) = problems(replace(good, **change))
    assert problem.startswith(named)


@pytest.mark.parametrize(
    "settings",
    [SOURCE, BUILD, TRAIN, MODEL, OptimizerConfig(), LoraConfig(), EvalConfig(), ChatConfig(), ExportConfig()],
    ids=label,
)
def test_the_defaults_have_no_problem(settings: Any) -> None:
    assert problems(settings) == []


AT_THE_EDGE: list[tuple[Any, dict[str, Any]]] = [
    (SOURCE, {"weight": 1.0, "max_rows": 1, "max_drop_share": 0.0, "max_damaged_share": 1.0}),
    (BUILD, {"seq_len": 16, "valid_share": 0.0, "packs_per_shard": 1, "workers": 0}),
    (BUILD, {"seq_len": 65535, "valid_share": 0.49, "max_row_bytes": 1, "evaluation_ngram_words": 5, "seed": 0}),
    (BUILD, {"valid_conversations": 1, "tokenizer_check_share": 0.0}),
    (SOURCE, {"near_duplicates": 0.5, "epochs": 100.0, "num_conversations": 1, "max_characters": 1}),
    (SOURCE, {"near_duplicates": 1.0, "epochs": 1.0, "min_answer_characters": 0}),
    (MODEL, {"num_heads": 64, "rotary_pct": 0.0}),
    (
        OptimizerConfig(),
        {"betas": (0.0, 0.999), "eps": 1e-30, "weight_decay": 0.0, "clip_norm": 0.0, "warmup_steps": 0},
    ),
    (OptimizerConfig(), {"min_lr_ratio": 1.0}),
    (
        TRAIN,
        {"batch_packs": 1, "epochs": 0.01, "max_steps": 1, "seed": 0},
    ),
    (GenerationConfig(), {"max_new_tokens": 1, "temperature": 0.0, "top_p": 1.0}),
    (InitConfig("scratch", "tiny"), {"vocab_size": 512}),
]


@pytest.mark.parametrize(("good", "change"), AT_THE_EDGE, ids=label)
def test_the_last_value_inside_the_range_is_accepted(good: Any, change: dict[str, Any]) -> None:
    assert problems(replace(good, **change)) == []


def test_several_problems_are_listed_together() -> None:
    assert len(problems(changed(TRAIN, epochs=0.0, seed=-1, max_steps=0))) == 3


def test_the_card_s_values_are_the_defaults() -> None:
    optimizer = OptimizerConfig()
    assert (optimizer.lr, optimizer.betas, optimizer.weight_decay) == (2e-5, (0.9, 0.99), 0.01)
    assert (TRAIN.precision, TRAIN.batch_packs, BUILD.seq_len) == ("fp16", 256, 4096)


@pytest.mark.parametrize("kind", CLASSES)
def test_settings_cannot_be_changed_once_resolved(kind: Any) -> None:
    assert kind.__dataclass_params__.frozen
    hints = [typing.get_type_hints(kind)[field.name] for field in dataclasses.fields(kind)]
    assert not [hint for hint in hints if (typing.get_origin(hint) or hint) in (list, set)]


def reads(name: str) -> Iterator[str]:
    """Where code outside the schema reads a setting: as an attribute, or by key once it is in a manifest."""
    pattern = re.compile(rf"\.{name}\b(?!\s*=[^=])|\[[\"']{name}[\"']\]|\"{name}\"")
    for path in (ROOT / "sft").rglob("*.py"):
        if path.parent.name != "config":
            yield from (f"{path}: {line}" for line in path.read_text().splitlines() if pattern.search(line))


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_every_setting_is_read_by_some_code(kind: type, name: str) -> None:
    assert list(reads(name)), f"{kind.__name__}.{name} does nothing"


def test_the_scan_for_readers_can_fail() -> None:
    assert not list(reads("no_such_setting"))
