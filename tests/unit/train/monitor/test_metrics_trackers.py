"""Weights & Biases and TensorBoard report what metrics.jsonl does, and are never a reason to stop."""

import importlib.util
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft.config.train import TrainConfig, WandbConfig
from sft.errors import ConfigError, StopRequested
from sft.train.engine.native import TorchEngine
from sft.train.loop import train
from sft.train.monitor.metrics import Tracker, open_tracker
from sft.train.monitor.records import Record, read_records
from sft.train.monitor.wandb import FINISH_TIMEOUT_S, INIT_TIMEOUT_S

MakeConfig = Callable[..., TrainConfig]
CANARY = "canary0123456789canary0123456789canary01"
ONLINE = WandbConfig(enabled=True, mode="online")


class FakeWandb(types.ModuleType):
    """Stands for the package: notes what it is given, and fails where it is told to."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.inits: list[dict[str, Any]] = []
        self.rows: list[Record] = []
        self.settings: dict[str, Any] = {}
        self.num_finished = 0
        self.fail: Callable[[str, Any], None] = lambda _call, _values: None

    def Settings(self, **settings: Any) -> object:
        self.settings = settings
        return object()

    def init(self, **arguments: Any) -> "FakeWandb":
        self.inits.append(arguments)
        self.fail("init", arguments)
        return self

    def define_metric(self, *arguments: Any, **options: Any) -> None:
        assert (arguments, options) == (("*",), {"step_metric": "optimizer_step"})

    def log(self, row: Record) -> None:
        self.fail("log", row)
        self.rows.append(row)

    def finish(self) -> None:
        self.fail("finish", None)
        self.num_finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def failing(call: str, error: Exception, mode: str | None = None) -> Callable[[str, Any], None]:
    def fail(called: str, values: Any) -> None:
        if called == call and (mode is None or values["mode"] == mode):
            raise error

    return fail


def num_steps_recorded(config: TrainConfig) -> int:
    return sum(record["kind"] == "step" for record in read_records(Path(config.out) / "metrics.jsonl"))


def test_wandb_gets_every_record_on_its_own_step_axis(tiny_config: MakeConfig, wandb: FakeWandb) -> None:
    config = tiny_config(wandb=ONLINE)
    train(config)
    steps = [row for row in wandb.rows if "step/loss" in row]
    records = [record for record in read_records(Path(config.out) / "metrics.jsonl") if record["kind"] == "step"]
    assert [(row["optimizer_step"], row["step/loss"], row["step/attempt"]) for row in steps] == [
        (record["step"], record["loss"], 1) for record in records
    ]
    assert wandb.num_finished == 1


def test_wandb_may_keep_the_run_waiting_for_a_bounded_time_only(tiny_config: MakeConfig, wandb: FakeWandb) -> None:
    train(tiny_config(wandb=ONLINE, max_steps=1))
    assert wandb.settings["init_timeout"] == wandb.settings["login_timeout"] == INIT_TIMEOUT_S <= 60
    assert wandb.settings["finish_timeout"] == FINISH_TIMEOUT_S < 30  # torchrun and Slurm kill 30 s after SIGTERM
    assert wandb.settings["console"] == "off"
    assert all(wandb.settings[name] for name in ("disable_code", "disable_git", "x_disable_meta"))


def test_wandb_server_out_of_reach_makes_the_run_go_on_offline(
    tiny_config: MakeConfig, wandb: FakeWandb, caplog: pytest.LogCaptureFixture
) -> None:
    wandb.fail = failing("init", RuntimeError("cannot be reached with key=" + CANARY), mode="online")
    config = tiny_config(wandb=ONLINE)
    train(config)
    assert [(call["mode"], call["resume"]) for call in wandb.inits] == [("online", "allow"), ("offline", None)]
    assert len({call["id"] for call in wandb.inits}) == 1
    assert sum("step/loss" in row for row in wandb.rows) == num_steps_recorded(config) == 12
    assert len(caplog.records) == 1
    assert "wandb cannot be reached, continuing offline" in caplog.text
    assert CANARY not in caplog.text


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("init", OSError("No space left on device")),
        ("log", OSError("No space left on device")),
        ("log", Exception()),  # what wandb raises when its helper process has died is no error of its own
        ("finish", TimeoutError("timed out")),
    ],
)
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_wandb_that_fails_costs_one_warning_and_not_the_run(
    call: str, error: Exception, mode: Any, tiny_config: MakeConfig, wandb: FakeWandb, caplog: pytest.LogCaptureFixture
) -> None:
    wandb.fail = failing(call, error)
    config = tiny_config(wandb=WandbConfig(enabled=True, mode=mode))
    train(config)
    assert num_steps_recorded(config) == 12
    assert caplog.text.count("wandb takes no more records, metrics.jsonl does: ") == 1
    assert (str(error) or "Exception") in caplog.text


def stopped_and_gone_back(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, fail_at: int = 7) -> None:
    """Train to step 6, saved after 4, die; then again to the end, going on after step 4."""
    original, done = TorchEngine.step, 0

    def step(engine: TorchEngine, lr: float) -> Any:
        nonlocal done
        done += 1
        if done == fail_at:
            raise StopRequested("killed")
        return original(engine, lr)

    with monkeypatch.context() as patch:
        patch.setattr(TorchEngine, "step", step)
        with pytest.raises(StopRequested):
            train(config)
    train(config)


def test_points_that_a_resume_superseded_can_be_told_apart_in_wandb(
    tiny_config: MakeConfig, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_and_gone_back(tiny_config(wandb=ONLINE, checkpoint__async_save=False), monkeypatch)
    assert [call["config"]["attempts"] for call in wandb.inits] == [{"1": 0}, {"1": 0, "2": 4}]
    assert len({call["id"] for call in wandb.inits}) == 1
    starts = wandb.inits[-1]["config"]["attempts"]
    rows = [row for row in wandb.rows if "step/loss" in row]
    valid = [
        row["optimizer_step"]
        for row in rows
        if row["optimizer_step"] <= starts.get(str(row["step/attempt"] + 1), row["optimizer_step"])
    ]
    assert len(rows) == 14
    assert valid == list(range(1, 13))


def scalars(config: TrainConfig) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would show."""
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    seen = loading.EventAccumulator(str(Path(config.out) / "tensorboard"))
    seen.Reload()
    return {tag: [(event.step, event.value) for event in seen.Scalars(tag)] for tag in seen.Tags()["scalars"]}


def test_tensorboard_shows_what_metrics_hold(tiny_config: MakeConfig) -> None:
    pytest.importorskip("tensorboard")
    config = tiny_config(tensorboard=True, evaluation__every_steps=6, evaluation__max_packs=2)
    train(config)
    records = read_records(Path(config.out) / "metrics.jsonl")
    shown = scalars(config)
    for name in ("loss", "lr", "grad_norm", "skipped"):
        expected = [(record["step"], record[name]) for record in records if record["kind"] == "step"]
        assert shown[f"step/{name}"] == [(step, pytest.approx(float(value), rel=1e-6)) for step, value in expected]
    assert [step for step, _ in shown["eval/sources/alpha/loss"]] == [6, 12]
    assert not any("attempt" in tag for tag in shown)


@pytest.mark.parametrize("fail_at", [3, 7])
def test_points_that_a_resume_superseded_vanish_from_tensorboard(
    fail_at: int, tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    config = tiny_config(tensorboard=True, checkpoint__async_save=False)
    stopped_and_gone_back(config, monkeypatch, fail_at)
    assert len(list((Path(config.out) / "tensorboard").iterdir())) == 2
    assert [step for step, _ in scalars(config)["step/loss"]] == list(range(1, 13))


def test_tensorboard_on_a_disk_that_refuses_costs_one_warning_and_not_the_run(
    tiny_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard")
    config = tiny_config(tensorboard=True)
    Path(config.out).mkdir()
    (Path(config.out) / "checkpoints").mkdir()
    (Path(config.out) / "run.json").write_text("{}")
    (Path(config.out) / "tensorboard").write_text("in the way")
    train(config)
    assert num_steps_recorded(config) == 12
    assert caplog.text.count("TensorBoard takes no more records") == 1


def test_missing_tensorboard_is_reported_with_the_way_to_install_it(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install -e '.\[tensorboard\]'"):
        open_tracker(tiny_config(tensorboard=True), tmp_path / "metrics.jsonl", [], "id")


def test_sinks_that_fail_do_not_keep_records_from_the_others(tmp_path: Path, tiny_config: MakeConfig) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker: Tracker = open_tracker(tiny_config(), path, [], "id")
    tracker.log("step", 1, loss=1.0)
    tracker.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1]


def test_key_in_the_environment_is_in_nothing_that_a_run_writes_prints_or_sends(
    tiny_config: MakeConfig,
    wandb: FakeWandb,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("WANDB_API_KEY", "HF_TOKEN", "MY_PASSWORD"):
        monkeypatch.setenv(name, CANARY)
    has_tensorboard = importlib.util.find_spec("tensorboard") is not None
    config = tiny_config(
        wandb=ONLINE, tensorboard=has_tensorboard, evaluation__every_steps=4, checkpoint__async_save=False
    )
    stopped_and_gone_back(config, monkeypatch)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []
    assert CANARY not in repr((wandb.inits, wandb.rows, wandb.settings))
    assert CANARY not in "".join(capfd.readouterr()) + caplog.text
