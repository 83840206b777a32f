from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from sft.config.engine import OptimizerConfig
from sft.config.loading import load
from sft.config.train import TrainConfig
from sft.config.yaml_text import read_yaml
from sft.data.shards import Shards
from sft.errors import ConfigError, StorageError
from sft.train.distributed.ranks import SINGLE
from sft.train.fingerprint import Identity, differences, identity
from sft.train.run_folder import RunFolder
from tests.support.configs import changed

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture
def ident(tiny_config: MakeConfig, tiny_shards: Path) -> Identity:
    return identity(tiny_config(), Shards.open(tiny_shards))


def enter(config: TrainConfig, ident: Identity, *, with_history: bool = True) -> str:
    with RunFolder.hold(Path(config.out), SINGLE) as folder:
        run_id = folder.enter(config, ident)
        if with_history:
            folder.metrics.write_text('{"kind": "step", "step": 1}\n')
        return run_id


def test_folder_keeps_the_config_and_the_id_of_its_run(tiny_config: MakeConfig, ident: Identity) -> None:
    config = tiny_config()
    assert enter(config, ident) == enter(config, ident)
    assert load(TrainConfig, [read_yaml(Path(config.out) / "config.yaml")]).config == config


def test_changed_conditions_are_refused_with_every_difference(tiny_config: MakeConfig, ident: Identity) -> None:
    config = tiny_config()
    enter(config, ident)
    changed = ident | {"optimizer.lr": 0.5, "seed": 7, "shards (content digest)": "ab"}
    with pytest.raises(ConfigError) as refusal:
        enter(config, changed)
    for line in (
        "optimizer.lr: was 0.001, now 0.5",
        "seed: was 0, now 7",
        f"shards (content digest): was {ident['shards (content digest)']!r}, now 'ab'",
    ):
        assert line in refusal.value.message()


def test_conditions_may_change_until_a_step_was_done(tiny_config: MakeConfig, ident: Identity) -> None:
    config = tiny_config()
    enter(config, ident, with_history=False)
    enter(config, ident | {"seed": 7})
    with pytest.raises(ConfigError, match="seed: was 7, now 0"):
        enter(config, ident)


def test_a_run_that_knows_its_settings_by_earlier_names_goes_on(ident: Identity) -> None:
    earlier = {new: old for old, new in TrainConfig.FORMERLY.items()}
    before = {earlier.get(name, name): value for name, value in ident.items()}
    assert "fp16_scale_window" in before
    assert differences(before, ident) == []
    assert differences({**before, "fp16_scale_window": 7}, ident) == ["fp16.scale_window: was 7, now 1000"]


def test_settings_that_are_not_fixed_may_change(tiny_config: MakeConfig, tiny_shards: Path) -> None:
    before = tiny_config()
    after = changed(
        before, micro_batch_packs=1, checkpoint__every_steps=9, checkpoint__keep_last=5, device="auto", out="elsewhere"
    )
    shards = Shards.open(tiny_shards)
    assert differences(identity(before, shards), identity(after, shards)) == []


def fixed_fields(schema: type[Any], prefix: str = "") -> list[str]:
    """The dotted names of all fields of a config class that are marked as fixed."""
    names = []
    for field in fields(schema):
        kind = type(field.default_factory()) if callable(field.default_factory) else field.type  # type: ignore[misc]
        if is_dataclass(kind):
            names += fixed_fields(kind, f"{prefix}{field.name}.")  # type: ignore[arg-type]
        elif field.metadata.get("resume_fixed"):
            names.append(f"{prefix}{field.name}")
    return names


def test_every_fixed_field_is_part_of_the_identity(ident: Identity) -> None:
    names = fixed_fields(TrainConfig)
    assert {"seed", "optimizer.lr", "model.weights", "precision"} <= set(names)
    assert set(names) == {name for name in ident if "(" not in name}


def test_sequences_compare_equal_after_a_round_trip(tiny_config: MakeConfig, ident: Identity) -> None:
    config = tiny_config(optimizer=OptimizerConfig(betas=(0.9, 0.95)))
    changed = ident | {"optimizer.betas": list(config.optimizer.betas)}
    assert enter(config, changed) == enter(config, changed)


@pytest.mark.parametrize("name", ["manifest.json", "config.yaml", "notes.txt"])
def test_folder_that_holds_something_else_is_refused_and_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(ConfigError, match=f"holds something else: {name}"), RunFolder.hold(tmp_path, SINGLE):
        pytest.fail("must not be entered")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match="it is a file"), RunFolder.hold(tmp_path / "run", SINGLE):
        pytest.fail("must not be entered")


def test_second_holder_is_refused_and_touches_nothing(tmp_path: Path) -> None:
    with RunFolder.hold(tmp_path / "run", SINGLE):
        (tmp_path / "run/checkpoints/.staging-step-00000004").mkdir()
        with pytest.raises(StorageError, match="in use by process"), RunFolder.hold(tmp_path / "run", SINGLE):
            pytest.fail("must not be entered")
        # Cleaning before the lock is ours would delete what the other process is just writing.
        assert (tmp_path / "run/checkpoints/.staging-step-00000004").is_dir()


def test_stop_file_for_an_earlier_process_is_taken_away(tmp_path: Path) -> None:
    (tmp_path / "STOP").touch()
    with RunFolder.hold(tmp_path, SINGLE):
        assert not (tmp_path / "STOP").exists()


def test_unreadable_run_file_is_refused_once_there_is_history(tiny_config: MakeConfig, ident: Identity) -> None:
    config = tiny_config()
    enter(config, ident)
    (Path(config.out) / "run.json").write_text('{"schema_version": 1')
    with pytest.raises(StorageError, match=r"run\.json: not readable"):
        enter(config, ident)
