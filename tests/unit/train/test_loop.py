import itertools
import math
import shutil
import signal
import time
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sft.config.train import TrainConfig
from sft.data.batches.batch import Batch
from sft.data.batches.sampler import Order
from sft.data.shards import Pack, Split
from sft.errors import ConfigError, DataError, NumericsError, StopRequested, StorageError
from sft.train.checkpoint.async_writer import AsyncWriter
from sft.train.checkpoint.initial_weights import StartingWeights
from sft.train.checkpoint.state import State
from sft.train.checkpoint.store import published
from sft.train.engine.base import StepResult
from sft.train.engine.native import TorchEngine
from sft.train.loop import train
from sft.train.monitor.records import Record, read_records

MakeConfig = Callable[..., TrainConfig]


def records(config: TrainConfig, kind: str) -> list[Record]:
    return [record for record in read_records(Path(config.out) / "metrics.jsonl") if record["kind"] == kind]


def steps_saved(config: TrainConfig) -> list[int]:
    return [int(path.name[5:]) for path in published(Path(config.out) / "checkpoints")]


def newest_state(config: TrainConfig) -> State:
    return State.read(published(Path(config.out) / "checkpoints")[0])


def after_step(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[int, TorchEngine, StepResult], StepResult | None]
) -> None:
    """Call `act` after every engine step, counted from 1; it may replace the result."""
    original, done = TorchEngine.step, 0

    def step(engine: TorchEngine, lr: float) -> StepResult:
        nonlocal done
        done += 1
        result = original(engine, lr)
        return act(done, engine, result) or result

    monkeypatch.setattr(TorchEngine, "step", step)


def test_run_learns_and_records_every_step(tiny_config: MakeConfig) -> None:
    config = tiny_config(epochs=5.0)
    train(config)
    steps = records(config, "step")
    assert [record["step"] for record in steps] == list(range(1, 31))
    assert steps[0]["loss"] == pytest.approx(math.log(64), rel=0.05)  # nothing is known yet: a guess among 64
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.5
    assert steps[0]["lr"] == pytest.approx(1e-3 / 3)
    assert {"grad_norm", "scale", "tokens", "supervised_tokens", "tokens_per_s", "step_s", "epoch"} < steps[0].keys()
    assert steps[-1]["epoch"] == 5
    state = newest_state(config)
    assert (state.step, state.position, state.epoch) == (30, 120, 5.0)
    assert state.counts.num_supervised_tokens == sum(record["supervised_tokens"] for record in steps)


def test_checkpoint_holds_what_is_needed_to_go_on_and_to_trace_it(tiny_config: MakeConfig, tiny_shards: Path) -> None:
    config = tiny_config(max_steps=1)
    train(config)
    folder = published(Path(config.out) / "checkpoints")[0]
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "tokenizer.json",
    ]
    assert (folder / "tokenizer.json").read_bytes() == (tiny_shards / "tokenizer.json").read_bytes()
    state = State.read(folder)
    assert state.config["optimizer"]["lr"] == config.optimizer.lr
    assert state.shards["sources"]["alpha"]["license"] == "CC0-1.0"
    assert state.identity["shards (content digest)"] == state.shards["content_digest"]
    assert state.versions["torch"].startswith(torch.__version__.split("+")[0])


def test_finished_run_says_so_and_does_nothing(tiny_config: MakeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(max_steps=2)
    train(config)
    assert "trained 2 steps; the model is in" in capsys.readouterr().out
    before = (Path(config.out) / "metrics.jsonl").read_bytes()
    train(config)
    assert "finished already, the model is in" in capsys.readouterr().out
    assert (Path(config.out) / "metrics.jsonl").read_bytes() == before


def test_newest_checkpoints_and_the_last_one_are_kept(tiny_config: MakeConfig) -> None:
    config = tiny_config(checkpoint__every_steps=5, checkpoint__keep_last=2)
    train(config)
    assert steps_saved(config) == [12, 10]
    assert [record["step"] for record in records(config, "save")] == [5, 10, 12]


def test_held_out_loss_is_measured_per_source_now_and_then_and_at_the_end(tiny_config: MakeConfig) -> None:
    config = tiny_config(evaluation__every_steps=5, evaluation__max_packs=4)
    train(config)
    evaluations = records(config, "eval")
    assert [record["step"] for record in evaluations] == [5, 10, 12]
    sources = evaluations[-1]["sources"]
    assert sources.keys() == {"alpha", "beta", "all"}
    assert sources["all"]["tokens"] == sources["alpha"]["tokens"] + sources["beta"]["tokens"]
    assert sources["all"]["loss"] == pytest.approx(math.log(sources["all"]["perplexity"]))


def test_measuring_does_not_change_the_run(tiny_config: MakeConfig, tmp_path: Path) -> None:
    plain, measured = tiny_config(), tiny_config(out=str(tmp_path / "measured"), evaluation__every_steps=1)
    train(plain)
    train(measured)
    assert [r["loss"] for r in records(plain, "step")] == [r["loss"] for r in records(measured, "step")]


def test_stop_file_saves_ends_with_75_and_lets_the_next_start_go_on(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(checkpoint__every_steps=100)
    stop_file = Path(config.out) / "STOP"
    with monkeypatch.context() as asking:
        after_step(asking, lambda done, *_: stop_file.touch() if done == 5 else None)
        with pytest.raises(StopRequested, match="stopped after step 5 of 12") as stop:
            train(config)
    assert stop.value.exit_code == 75
    assert "same command again" in stop.value.message()
    assert steps_saved(config) == [5]
    assert not stop_file.exists()
    train(config)
    assert [record["step"] for record in records(config, "step")] == list(range(1, 13))


STOPPED_IN = {
    "loading": (StartingWeights, "flat", "before the first step"),
    "measuring": (TorchEngine, "measure", "after step 4 of 12"),
    "saving": (AsyncWriter, "begin", "after step 5 of 12"),
    "publishing": (AsyncWriter, "publish", "after step 5 of 12"),
}


@pytest.mark.parametrize("phase", STOPPED_IN)
def test_a_signal_in_any_phase_stops_the_run_at_the_end_of_it(
    phase: str, tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, method, place = STOPPED_IN[phase]
    config = tiny_config(evaluation__every_steps=4, checkpoint__async_save=False, health__numerics_gate=False)
    original, calls = getattr(owner, method), 0

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            signal.raise_signal(signal.SIGTERM)
        return original(*arguments, **options)

    with monkeypatch.context() as asking:
        asking.setattr(owner, method, interrupted)
        with pytest.raises(StopRequested, match=place):
            train(config)
    assert [record["sources"]["all"]["tokens"] > 0 for record in records(config, "eval")] in ([], [True])
    train(config)
    assert [record["step"] for record in records(config, "step")] == list(range(1, 13))


def test_end_of_the_job_stops_the_run_in_time(tiny_config: MakeConfig) -> None:
    """The clock moves one second each time somebody looks."""
    now_s = 0.0

    def clock() -> float:
        nonlocal now_s
        now_s += 1
        return now_s

    config = tiny_config(stop_margin_s=60.0)
    with pytest.raises(StopRequested, match="time is nearly up"):
        train(config, environ={"SLURM_JOB_END_TIME": str(time.time() + 72)}, clock=clock)
    (saved,) = steps_saved(config)
    assert 1 <= saved <= 4


def test_stop_at_a_saved_step_saves_only_once(tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    after_step(monkeypatch, lambda done, *_: (Path(config.out) / "STOP").touch() if done == 4 else None)
    with pytest.raises(StopRequested):
        train(config)
    assert [record["step"] for record in records(config, "save")] == [4]


def test_non_finite_steps_in_a_row_end_the_run_with_clean_weights(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    original, calls = TorchEngine.forward_backward, 0

    def poisoned(engine: TorchEngine, *arguments: Any, is_last: bool) -> None:
        nonlocal calls
        calls += 1
        original(engine, *arguments, is_last=is_last)
        if calls > 2 * 5:  # two micro-batches a step: from step 6 on
            engine.model.head_weight.grad[0, 0] = math.nan  # type: ignore[index]

    monkeypatch.setattr(TorchEngine, "forward_backward", poisoned)
    with pytest.raises(NumericsError, match=r"step 8, packs .*3 steps in a row") as error:
        train(config)
    assert error.value.exit_code == 70
    last = records(config, "step")[-1]
    assert (last["skipped"], last["grad_norm"], len(last["packs"])) == (True, "nan", 4)
    assert steps_saved(config) == [4]


def test_skipped_step_advances_position_and_schedule(tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    after_step(monkeypatch, lambda done, _, result: replace(result, is_skipped=True) if done == 3 else None)
    train(config)
    steps = records(config, "step")
    assert [record["skipped"] for record in steps] == [step == 3 for step in range(1, 13)]
    assert len({record["lr"] for record in steps}) == len(steps)
    assert newest_state(config).counts.num_skipped_steps == 1


def unsupervised(monkeypatch: pytest.MonkeyPatch, packs: set[int], *, tell: bool) -> None:
    """Take the supervised tokens out of some packs, and say so in their column or not."""
    original_pack, original_column = Split.__getitem__, Split.num_supervised_P.func

    def pack(split: Split, index: int) -> Pack:
        found = original_pack(split, index)
        return replace(found, loss_mask_T=found.loss_mask_T * 0) if index in packs else found

    def column(split: Split) -> Any:
        told = original_column(split).copy()
        told[list(packs)] = 0
        return told

    monkeypatch.setattr(Split, "__getitem__", pack)
    if tell:
        monkeypatch.setattr(Split, "num_supervised_P", property(column))


def test_step_without_supervised_tokens_leaves_the_weights_alone_and_is_counted(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(max_steps=3)
    empty = Order(24, 4, 2.0, 0).batch(1)
    unsupervised(monkeypatch, set(empty), tell=True)
    train(config)
    assert [record["supervised_tokens"] > 0 for record in records(config, "step")] == [True, False, True]
    assert all(math.isfinite(record["loss"]) for record in records(config, "step"))
    assert newest_state(config).counts.num_empty_steps == 1
    assert "step 2: its packs hold no supervised token" in caplog.text


def test_masks_that_contradict_their_column_are_refused_before_the_weights_change(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsupervised(monkeypatch, {0, 7}, tell=False)
    with pytest.raises(DataError, match="their num_supervised says"):
        train(tiny_config())


def full_disk(monkeypatch: pytest.MonkeyPatch, is_full: Callable[[], bool]) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, 0 if is_full() else 10**12))


def test_full_disk_costs_a_checkpoint_but_not_the_run(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config()
    full_disk(monkeypatch, lambda: len(records(config, "step")) == 4)
    train(config)
    assert steps_saved(config) == [12, 8]
    assert "step 4 was not saved, training continues" in caplog.text


@pytest.mark.parametrize(("every_steps", "last_step"), [(2, 6), (100, 12)], ids=["third in a row", "at the end"])
def test_disk_that_stays_full_ends_the_run(
    every_steps: int, last_step: int, tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(checkpoint__every_steps=every_steps)
    full_disk(monkeypatch, lambda: True)
    with pytest.raises(StorageError, match="a checkpoint needs") as error:
        train(config)
    assert error.value.exit_code == 74
    assert records(config, "step")[-1]["step"] == last_step


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": 0.01}, "not one of 24 packs to train on"),
        ({"device": "cuda"}, "no CUDA device"),
    ],
)
def test_run_that_cannot_work_is_refused_before_its_first_step(
    changes: dict[str, Any], sentence: str, tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=sentence):
        train(tiny_config(**changes))


def test_several_processes_without_a_meeting_place_are_refused(tiny_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="MASTER_ADDR and MASTER_PORT are not set"):
        train(tiny_config(), environ={"RANK": "0", "WORLD_SIZE": "2"})


def test_changed_setting_of_a_started_run_is_refused(tiny_config: MakeConfig) -> None:
    train(tiny_config(max_steps=2))
    with pytest.raises(ConfigError, match="max_steps: was 2, now 3") as refusal:
        train(tiny_config(max_steps=3))
    assert refusal.value.exit_code == 78


def test_checkpoint_of_another_run_is_refused(tiny_config: MakeConfig, tmp_path: Path) -> None:
    ours, other = tiny_config(max_steps=2), tiny_config(max_steps=2, seed=8, out=str(tmp_path / "other"))
    train(ours)
    train(other)
    shutil.rmtree(Path(ours.out) / "checkpoints")
    shutil.copytree(Path(other.out) / "checkpoints", Path(ours.out) / "checkpoints")
    with pytest.raises(ConfigError, match="seed: was 8, now 0"):
        train(ours)


def test_shards_changed_on_disk_are_refused(tiny_config: MakeConfig, tiny_shards: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_shards, tmp_path / "shards")
    file = tmp_path / "shards/train-00000-of-00001.arrow"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match="changed after the build"):
        train(tiny_config(shards=str(tmp_path / "shards")))


def test_validation_without_held_out_packs_is_refused_at_the_start(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Split, "__len__", lambda split: 0 if split.name == "valid" else int(split._starts[-1]))
    with pytest.raises((ConfigError, DataError), match="valid"):
        train(tiny_config(evaluation__every_steps=1))


def test_order_of_packs_is_the_pure_function_and_ends_with_a_shorter_batch(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    original = TorchEngine.forward_backward

    def watched(engine: TorchEngine, batch: Batch, num_supervised: int, *, is_last: bool) -> None:
        seen.append(list(batch.packs))
        original(engine, batch, num_supervised, is_last=is_last)

    monkeypatch.setattr(TorchEngine, "forward_backward", watched)
    train(tiny_config(batch_packs=5, micro_batch_packs=5, seed=3))
    order = Order(num_packs=24, batch_packs=5, epochs=2.0, seed=3)
    assert seen == [order.batch(step) for step in range(10)]
    assert [len(packs) for packs in seen] == [5] * 9 + [3]
    assert sorted(itertools.chain(*seen)) == sorted([*range(24), *range(24)])
