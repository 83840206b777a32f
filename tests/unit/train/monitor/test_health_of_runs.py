"""What the loop records about steps that were unusual, and how it ends."""

import dataclasses
import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sft.config.train import TrainConfig
from sft.data.shards import Shards
from sft.errors import NumericsError, StopRequested, StorageError
from sft.train.checkpoint.state import State
from sft.train.checkpoint.store import published
from sft.train.engine.base import StepResult
from sft.train.engine.native import TorchEngine
from sft.train.inspect_step import show_step
from sft.train.loop import train
from sft.train.lr_schedule import learning_rate
from sft.train.monitor import bad_steps
from sft.train.monitor.bad_steps import read_bad_step
from sft.train.monitor.records import Record, read_records
from sft.train.run_layout import RunLayout

MakeConfig = Callable[..., TrainConfig]
Change = dict[str, Any]

STEEP: Change = {"grad_norm": math.inf, "is_skipped": True}


def change_results(monkeypatch: pytest.MonkeyPatch, changes: dict[int, Change]) -> None:
    """Replace what the engine tells of some steps, counted from 1; the engine knows by itself which step it takes."""
    original, steps = TorchEngine.step, iter(range(1, 1000))

    def step(engine: TorchEngine, lr: float) -> StepResult:
        result = original(engine, lr)
        return replace(result, **changes.get(next(steps), {}))

    monkeypatch.setattr(TorchEngine, "step", step)


def records(config: TrainConfig, kind: str) -> list[Record]:
    return [record for record in read_records(Path(config.out) / "metrics.jsonl") if record["kind"] == kind]


def counts(config: TrainConfig) -> dict[str, Any]:
    return dataclasses.asdict(State.read(published(Path(config.out) / "checkpoints")[0]).counts)


def shown(config: TrainConfig, step: int) -> str:
    stream = io.StringIO()
    show_step(Path(config.out), step, Console(file=stream, width=200))
    return stream.getvalue()


def test_the_step_that_ends_the_run_leaves_every_row_behind(
    tiny_config: MakeConfig, tiny_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    change_results(monkeypatch, {step: {"loss_sum": math.nan, "is_skipped": True} for step in (6, 7, 8)})
    with pytest.raises(NumericsError, match="not finite in 3 steps in a row") as error:
        train(config)
    path = RunLayout(Path(config.out)).bad_step(8)
    assert str(path) in error.value.message()
    told = json.loads(path.read_text())
    packs = records(config, "step")[-1]["packs"]
    assert (told["step"], told["loss"], told["reason"], told["ended_the_run"]) == (8, "nan", "loss is nan", True)
    split = Shards.open(tiny_shards).split("train")
    expected = [(pack, number) for pack in packs for number, _ in split[pack].documents()]
    assert [(row["pack"], row["document"]) for row in told["documents"]] == expected
    for row in told["documents"]:
        number = row["document"]  # how the tiny shards are made
        assert (row["source"], row["file"], row["row"]) == (("alpha", "beta")[number % 2], "rows.jsonl", number)
    assert [read_bad_step(RunLayout(Path(config.out)).bad_step(step))["ended_the_run"] for step in (6, 7)] == [
        False,
        False,
    ]  # type: ignore[index]
    text = shown(config, 8)
    assert "logged: loss nan" in text
    assert "skipped (loss is nan): the weights stayed as they were" in text
    assert f"bad step: loss is nan, and the run ended here; every row is in {path}" in text


def test_a_skipped_step_is_told_everywhere_and_the_run_goes_on(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config()
    change_results(monkeypatch, {3: STEEP})
    train(config)
    assert [record["step"] for record in records(config, "step") if record["skipped"]] == [3]
    assert records(config, "step")[2]["reason"] == "gradient norm is inf"
    assert "on the way: 1 step skipped as not finite (8.33%), counted as done" in capsys.readouterr().out
    assert "bad step: gradient norm is inf; every row is in" in shown(config, 3)
    assert "bad step" not in shown(config, 4)


def test_every_change_of_the_loss_scale_is_recorded_and_an_overflow_is_no_bad_step(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config()
    scales = [64.0, 64.0, 32.0, 16.0, 16.0, 16.0, 32.0, *[32.0] * 5]
    changes: dict[int, Change] = {step: {"scale": scale} for step, scale in enumerate(scales, 1)}
    change_results(monkeypatch, {**changes, 2: {"scale": 64.0, **STEEP}, 3: {"scale": 32.0, **STEEP}})
    train(config)
    assert [
        (record["step"], record["old"], record["new"], record["reason"]) for record in records(config, "scale")
    ] == [
        (3, 64.0, 32.0, "overflow"),
        (4, 32.0, 16.0, "overflow"),
        (7, 16.0, 32.0, "no overflow for fp16.scale_window steps"),
    ]
    assert "loss scale 32: cut 2 times, raised 1 time, smallest 16" in capsys.readouterr().out
    assert not (Path(config.out) / "bad_steps").exists()
    assert "loss scale 32, was 64 at the step before: overflow" in shown(config, 3)


def test_fp16_comes_down_from_a_loss_scale_that_is_too_high_and_tells_every_step_of_it(tiny_config: MakeConfig) -> None:
    config = tiny_config(precision="fp16", fp16__initial_scale_power=24, max_steps=4)
    train(config)
    steps, changes = records(config, "step"), records(config, "scale")
    assert [step["scale"] for step in steps] == [2.0**power for power in (24, 23, 22, 21)]
    assert steps[0]["reason"] == "gradient overflows at loss scale 16777216"
    assert [(change["step"], change["old"], change["new"]) for change in changes] == [
        (step, 2.0 ** (26 - step), 2.0 ** (25 - step)) for step in (2, 3, 4)
    ]
    assert all(math.isfinite(step["loss"]) and step["grad_norm"] in ("inf", "nan") for step in steps)
    assert counts(config)["num_skipped_steps"] == 4


def test_rate_after_a_resume_is_that_of_the_step(tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(health__max_bad_steps=1)
    with monkeypatch.context() as patch:
        change_results(patch, {7: STEEP})
        with pytest.raises(NumericsError):
            train(config)
    train(config)
    told = {record["step"]: record["lr"] for record in records(config, "step") if "superseded" not in record}
    assert told == {step: learning_rate(step - 1, 12, config.optimizer) for step in range(1, 13)}


def test_a_spike_is_recorded_with_its_packs_and_warned_about_once(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(health__spike_window=8)
    change_results(monkeypatch, {step: {"loss_sum": 1e6} for step in (6, 7)})
    train(config)
    (spike,) = records(config, "spike")
    assert spike["step"] == 6
    assert spike["loss"] > 100 > spike["limit"] > spike["mean"]
    assert len(spike["packs"]) == 4
    assert caplog.text.count("is far above its recent mean") == 1
    assert "a loss spike starts here" in shown(config, 6)
    assert counts(config)["num_spikes"] == 1


def test_a_loss_above_max_loss_ends_the_run_before_its_weights_are_saved(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(health__max_loss=20.0, checkpoint__every_steps=2, checkpoint__async_save=False)
    change_results(monkeypatch, {6: {"loss_sum": 1e6}})
    with pytest.raises(NumericsError, match=r"is above health\.max_loss=20") as error:
        train(config)
    assert str(RunLayout(Path(config.out)).bad_step(6)) in error.value.message()
    assert [path.name for path in published(Path(config.out) / "checkpoints")] == ["step-00000004", "step-00000002"]


@pytest.mark.parametrize("stop", [3, 7])
def test_what_the_run_has_seen_is_the_same_after_a_resume(
    stop: int, tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parted = (
        tiny_config(health__spike_window=6),
        tiny_config(health__spike_window=6, out=str(tmp_path / "parted")),
    )
    changes: dict[int, Change] = {step: {"scale": 64.0 if step < 7 else 32.0} for step in range(1, 13)}
    changes[6] |= STEEP
    changes[7] |= {"loss_sum": 1e5}
    for config in (whole, parted):
        with monkeypatch.context() as patch:
            change_results(patch, changes)
            if config is parted:
                original = TorchEngine.step

                def step(engine: TorchEngine, lr: float, original: Any = original) -> StepResult:
                    result: StepResult = original(engine, lr)
                    if len(records(parted, "step")) == stop - 1:
                        (Path(parted.out) / "STOP").touch()
                    return result

                patch.setattr(TorchEngine, "step", step)
                with pytest.raises(StopRequested):
                    train(config)
            train(config)
    assert counts(parted) == counts(whole)
    for kind in ("scale", "spike"):
        told = [[{**record, "attempt": 0} for record in records(config, kind)] for config in (whole, parted)]
        assert told[0] == told[1] != []


def test_a_full_disk_hides_neither_the_error_nor_its_cause(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path, _text: str) -> None:
        raise StorageError("cannot be written: No space left on device", on=path)

    monkeypatch.setattr(bad_steps, "write_text", refuse)
    change_results(monkeypatch, {2: STEEP})
    with pytest.raises(NumericsError, match="not finite in 1 step in a row"):
        train(tiny_config(health__max_bad_steps=1))
    assert "step 2 is reported in metrics.jsonl only" in caplog.text


def test_a_run_that_is_sick_for_long_does_not_fill_the_disk(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    monkeypatch.setattr(bad_steps, "MAX_FILES", 2)
    change_results(monkeypatch, dict.fromkeys((1, 3, 5, 7, 8, 9), STEEP))
    with pytest.raises(NumericsError, match="3 steps in a row"):
        train(config)
    assert [path.name for path in sorted((Path(config.out) / "bad_steps").iterdir())] == [
        "step-00000001.json",
        "step-00000003.json",
        "step-00000009.json",
    ]


def test_a_bad_step_that_was_taken_anew_is_no_longer_called_bad(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(health__max_bad_steps=1)
    with monkeypatch.context() as patch:
        change_results(patch, {6: STEEP})
        with pytest.raises(NumericsError):
            train(config)
    assert "the run ended here" in shown(config, 6)
    train(config)
    assert "bad step" not in shown(config, 6)
    assert RunLayout(Path(config.out)).bad_step(6).is_file()
