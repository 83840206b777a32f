"""A run that was killed, stopped or damaged ends with the same bits as one that was left alone."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from sft.config.train import TrainConfig
from sft.config.yaml_text import as_yaml
from sft.errors import StorageError
from sft.train.loop import train
from sft.train.monitor.records import read_records

pytestmark = pytest.mark.usefixtures("one_thread")

MakeConfig = Callable[..., TrainConfig]
ROOT = Path(__file__).parents[2]
# Saves in the foreground: of a process that is killed, one knows what it has saved.
TWENTY_STEPS: dict[str, Any] = {"epochs": 10 / 3, "checkpoint__every_steps": 5, "checkpoint__async_save": False}
LAST = "checkpoints/step-00000020"

# What happens to a run (see child.py), in which precision, its exit code, and the checkpoint left to go on from.
EVENTS = {
    "killed in fp32": ("fp32", "kill:12", -9, 10),
    "killed in bf16": ("bf16", "kill:12", -9, 10),
    "killed in fp16": ("fp16", "kill:12", -9, 10),
    "killed while saving": ("fp32", "save:15", -9, 10),
    "killed before its first save": ("fp32", "kill:3", -9, None),
    "stopped by SIGTERM": ("fp32", "SIGTERM:9", 75, 10),  # the step in progress is finished first
    "stopped by SIGUSR1": ("fp32", "SIGUSR1:9", 75, 10),
}


@dataclass(frozen=True)
class Died:
    """A run that died, how, and what it left."""

    config: TrainConfig
    exit_code: int
    newest: int | None


@pytest.fixture(scope="module")
def died(shared_tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Died]:
    """Every event's run, all by one child process, because importing PyTorch takes seconds."""
    configs = {
        name: shared_tiny_config(precision=precision, **TWENTY_STEPS) for name, (precision, *_) in EVENTS.items()
    }
    arguments = []
    for number, (name, (_, event, *_)) in enumerate(EVENTS.items()):
        path = tmp_path_factory.mktemp("configs") / f"{number}.yaml"
        path.write_text(as_yaml(configs[name]))
        arguments.append(f"{path}:{event}")
    command = [sys.executable, "-m", "tests.integration.child", *arguments]
    child = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    codes = [int(line) for line in child.stdout.splitlines()]
    newest = [newest_step(Path(config.out)) for config in configs.values()]
    return dict(zip(configs, map(Died, configs.values(), codes, newest), strict=True))


@pytest.fixture(scope="module")
def straight(shared_tiny_config: MakeConfig) -> Callable[[str], Path]:
    """The folder of an undisturbed run in a precision."""
    folders: dict[str, Path] = {}

    def run(precision: str) -> Path:
        if precision not in folders:
            config = shared_tiny_config(precision=precision, **TWENTY_STEPS)
            train(config)
            folders[precision] = Path(config.out)
        return folders[precision]

    return run


@pytest.mark.parametrize("name", EVENTS)
def test_run_that_died_goes_on_and_ends_with_the_same_bits(
    name: str, died: dict[str, Died], straight: Callable[[str], Path]
) -> None:
    precision, _, exit_code, newest = EVENTS[name]
    run = died[name]
    assert (run.exit_code, run.newest) == (exit_code, newest)
    train(run.config)
    assert final_state(Path(run.config.out)) == final_state(straight(precision))


@pytest.fixture
def finished(straight: Callable[[str], Path], tiny_config: MakeConfig) -> TrainConfig:
    """The config of a finished run, in a folder that the test may hurt."""
    config = tiny_config(**TWENTY_STEPS)
    shutil.copytree(straight("fp32"), config.out)
    return config


def test_damaged_newest_checkpoint_is_set_aside_and_the_one_before_used(
    finished: TrainConfig, straight: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    out = Path(finished.out)
    flip_bit(out / LAST / "model.safetensors")
    train(finished)
    assert final_state(out) == final_state(straight("fp32"))
    assert "model.safetensors: changed" in caplog.text
    assert (out / "checkpoints/.bad-step-00000020").is_dir()


def test_metrics_past_the_restored_step_are_marked_superseded(finished: TrainConfig) -> None:
    out = Path(finished.out)
    flip_bit(out / LAST / "optimizer.safetensors")
    train(finished)
    records = [record for record in read_records(out / "metrics.jsonl") if record["kind"] == "step"]
    assert [record["step"] for record in records if record.get("superseded")] == [16, 17, 18, 19, 20]
    attempts = [(record["step"], record["attempt"]) for record in records if not record.get("superseded")]
    assert attempts == [(step, 1 if step <= 15 else 2) for step in range(1, 21)]


def test_run_without_a_whole_checkpoint_left_is_never_started_from_scratch(finished: TrainConfig) -> None:
    checkpoints = Path(finished.out) / "checkpoints"
    for folder in checkpoints.iterdir():
        flip_bit(folder / "state.json")
    for _ in range(2):  # also when the bad ones were set aside by an earlier start
        with pytest.raises(StorageError, match="no whole checkpoint is left"):
            train(finished)
    shutil.rmtree(checkpoints)
    with pytest.raises(StorageError, match="no whole checkpoint is left"):
        train(finished)


def test_micro_batch_size_may_change_on_resume(finished: TrainConfig, straight: Callable[[str], Path]) -> None:
    out = Path(finished.out)
    shutil.rmtree(out / LAST)
    train(replace(finished, micro_batch_packs=4))
    before, after = dict(losses(straight("fp32"))), dict(losses(out))
    assert after == pytest.approx(before, rel=1e-5)


def final_state(folder: Path) -> dict[str, Any]:
    """Everything that a finished run is judged by."""
    state = json.loads((folder / LAST / "state.json").read_text())
    state["config"].pop("out")
    tensors = {
        f"{file}/{name}": tensor.numpy().tobytes()
        for file in ("model.safetensors", "optimizer.safetensors")
        for name, tensor in load_file(folder / LAST / file).items()
    }
    return {"state": state, "tensors": tensors, "losses": losses(folder)}


def losses(folder: Path) -> list[tuple[int, float]]:
    """The loss of every step that counts."""
    records = read_records(folder / "metrics.jsonl")
    return [(r["step"], r["loss"]) for r in records if r["kind"] == "step" and not r.get("superseded")]


def newest_step(folder: Path) -> int | None:
    return max((int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*")), default=None)


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
