"""Every mistake in the settings is told at once, with its place and the nearest right name."""

import string
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from sft.config.loading import Layer, load, read_arguments
from sft.config.model import InitConfig
from sft.config.train import TrainConfig
from sft.config.yaml_text import read_yaml
from sft.errors import ConfigError
from tests.support.schemas import TRAIN, refusal


def test_an_unknown_key_is_told_with_its_file_and_the_nearest_name(tmp_path: Path) -> None:
    yaml_file = tmp_path / "config.yaml"
    yaml_file.write_text("path: p\ncuont: 3\ninner: {rat: 1}\ntable: {one: {naem: x}}\n")
    message = refusal(read_yaml(yaml_file), read_arguments(["labl=x", "inner.nmae=x"]))
    assert message.startswith("5 mistakes in the configuration\n")
    for line in (
        f"cuont: unknown key in {yaml_file}; did you mean count?",
        "labl: unknown key in command line; did you mean label?",
        f"inner.rat: unknown key in {yaml_file}; did you mean inner.rate?",
        "inner.nmae: unknown key in command line; did you mean inner.name?",
        f"table.one.naem: unknown key in {yaml_file}; did you mean table.one.name?",
    ):
        assert f"\n  - {line}" in message


def test_an_unknown_key_like_no_other_is_answered_with_all_names() -> None:
    assert "inner.zzz: unknown key in file0; known here: rate, name" in refusal({"path": "p", "inner": {"zzz": 1}})


@pytest.mark.parametrize("key", [1, None, True, 2.5, "inner.rate", ""], ids=repr)
def test_a_key_that_is_no_name_is_unknown(key: Any) -> None:
    assert f"  - {key}: unknown key" in refusal({"path": "p", key: 1})


def test_a_missing_value_is_named() -> None:
    assert "  - path: missing, please set it" in refusal({})
    message = refusal({}, schema=TrainConfig)
    assert message.splitlines()[1:] == [
        f"  - {name}: missing, please set it" for name in ("shards", "model.weights", "out")
    ]


def test_all_mistakes_are_told_at_once() -> None:
    wrong = {"shards": 1, "epochs": "two", "optimizer": {"lr": None, "beta": 1}, "wandb": {"mode": "on"}, "modle": {}}
    message = refusal(wrong, read_arguments(["precision=fp8", "batch_packs=2.5"]), schema=TrainConfig)
    named = [line.split("=")[0].split(":")[0].removeprefix("  - ") for line in message.splitlines()[1:]]
    scalars = {"shards", "epochs", "optimizer.lr", "wandb.mode", "precision", "batch_packs"}
    assert set(named) == scalars | {"optimizer.beta", "modle", "model.weights", "out"}
    assert message.startswith("10 mistakes")


def test_contradictions_of_different_parts_are_told_at_once() -> None:
    message = refusal({**TRAIN, "optimizer": {"lr": -1}, "model": {"weights": "scratch"}}, schema=TrainConfig)
    assert "optimizer.lr=-1.0: expected above 0" in message
    assert "model.weights=scratch: needs" in message


@pytest.mark.parametrize("other", [{"epochz": 1}, {"precision": "fp8"}, {"optimizer": {"lr": -1}}], ids=str)
def test_a_range_and_another_mistake_are_told_at_once(other: dict[str, Any]) -> None:
    message = refusal({**TRAIN, "checkpoint": {"keep_last": 0}, **other}, schema=TrainConfig)
    assert "checkpoint.keep_last=0: expected at least 2" in message
    assert next(iter(other)) in message


TYPO_KEYS = [
    *((field.name, TrainConfig) for field in fields(TrainConfig)),
    *((field.name, InitConfig) for field in fields(InitConfig)),
]


def typos(name: str) -> set[str]:
    """Every way to leave out, double, swap or mistype one letter."""
    cuts = [(name[:place], name[place:]) for place in range(len(name) + 1)]
    letters = string.ascii_lowercase + "_"
    left_out = {a + b[1:] for a, b in cuts if b}
    swapped = {a + b[1] + b[0] + b[2:] for a, b in cuts if len(b) > 1}
    mistyped = {a + letter + b[1:] for a, b in cuts if b for letter in letters}
    added = {a + letter + b for a, b in cuts for letter in letters}
    return (left_out | swapped | mistyped | added) - {name, ""}


@pytest.mark.parametrize(("name", "schema"), TYPO_KEYS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_key_misspelt_by_one_letter_is_refused_with_the_right_name(name: str, schema: type) -> None:
    known = {field.name for field in fields(schema)}
    wrong = sorted(typo for typo in typos(name) if typo not in known)
    required = {"weights": "base"} if schema is InitConfig else TRAIN
    message = refusal({**required, **dict.fromkeys(wrong, 1)}, schema=schema)
    for typo in wrong:
        assert f"  - {typo}: unknown key in file0; did you mean {name}?" in message


@pytest.mark.parametrize(("old", "new"), [*TrainConfig.FORMERLY.items()])
def test_a_key_of_an_earlier_version_is_answered_with_today_s(old: str, new: str, tmp_path: Path) -> None:
    yaml_file = tmp_path / "config.yaml"
    yaml_file.write_text(f"{old}: 1\n")
    for layer, place in ((read_yaml(yaml_file), str(yaml_file)), (read_arguments([f"{old}=1"]), "command line")):
        message = refusal(TRAIN, layer, schema=TrainConfig)
        assert f"  - {old}: unknown key in {place}; it is called {new} now" in message


def test_today_s_names_of_earlier_keys_are_known() -> None:
    config = load(TrainConfig, [Layer("file", TRAIN)]).config
    for name in TrainConfig.FORMERLY.values():
        group, _, inner = name.partition(".")
        assert hasattr(getattr(config, group), inner)


@pytest.mark.parametrize("argument", ["", "=", "=3", "epochs", "--epochs", "epochs 3"])
def test_an_argument_that_is_no_setting_is_refused(argument: str) -> None:
    with pytest.raises(ConfigError, match=r"expected key=value\n  → for example"):
        read_arguments([argument])


def test_a_setting_cannot_hold_a_value_and_settings() -> None:
    with pytest.raises(ConfigError, match="inner was given a value before"):
        read_arguments(["inner=1", "inner.rate=2"])


def test_a_setting_cannot_hold_settings_and_a_value() -> None:
    with pytest.raises(ConfigError, match="inner"):
        read_arguments(["inner.rate=2", "inner={name: x}"])


@pytest.mark.parametrize(("written", "advice"), [("true", "full"), ("false", "none")])
def test_a_value_of_an_earlier_version_is_refused_with_today_s(tmp_path: Path, written: str, advice: str) -> None:
    yaml_file = tmp_path / "config.yaml"
    yaml_file.write_text(f"activation_checkpointing: {written}\n")
    for layer in (read_yaml(yaml_file), read_arguments([f"activation_checkpointing={written}"])):
        message = refusal(TRAIN, layer, schema=TrainConfig)
        assert message.endswith(f"expected one of none, cheap, full; write {advice} instead")


@pytest.mark.parametrize("written", ["none", "cheap", "full"])
def test_the_word_none_is_a_policy_and_not_an_empty_value(tmp_path: Path, written: str) -> None:
    yaml_file = tmp_path / "config.yaml"
    yaml_file.write_text(f"activation_checkpointing: {written}\n")
    for layer in (read_yaml(yaml_file), read_arguments([f"activation_checkpointing={written}"])):
        assert load(TrainConfig, [Layer("file", TRAIN), layer]).config.activation_checkpointing == written
