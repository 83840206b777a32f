import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sft.config.train import TrainConfig, WandbConfig
from sft.errors import ConfigError
from sft.train.monitor.metrics import MetricsFile, Tracker, open_tracker
from sft.train.monitor.records import read_records, supersede

MakeConfig = Callable[..., TrainConfig]


def test_numbers_that_are_not_finite_are_written_as_valid_json(tmp_path: Path) -> None:
    tracker = Tracker([MetricsFile(tmp_path / "metrics.jsonl")], attempt=3)
    tracker.log("step", 7, loss=float("nan"), norms=[1.0, float("-inf")], sources={"alpha": {"loss": float("inf")}})
    tracker.close()
    text = (tmp_path / "metrics.jsonl").read_text()

    def refuse(literal: str) -> None:
        raise AssertionError(f"{literal} is not JSON")

    assert json.loads(text, parse_constant=refuse) == {
        "kind": "step",
        "step": 7,
        "attempt": 3,
        "loss": "nan",
        "norms": [1.0, "-inf"],
        "sources": {"alpha": {"loss": "inf"}},
    }


def test_records_past_the_restored_step_are_marked_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "step", "step": 4}\n{"kind": "step", "step": 5}\n{"kind": "step", "st')
    supersede(path, read_records(path), step=4)
    assert path.read_text().splitlines() == [
        '{"kind": "step", "step": 4}',
        '{"kind": "step", "step": 5, "superseded": true}',
    ]


def test_each_start_is_a_new_attempt(tiny_config: MakeConfig, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for _ in range(3):
        tracker = open_tracker(tiny_config(), path, read_records(path), "id")
        tracker.log("start", 0)
        tracker.close()
    assert [record["attempt"] for record in read_records(path)] == [1, 2, 3]


def test_disk_that_refuses_costs_records_but_not_the_ones_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = MetricsFile(path)
    stream = sink._stream

    class FullDisk:
        """Takes half of every line."""

        @staticmethod
        def write(data: bytes) -> int:
            return stream.write(data[: len(data) // 2])

    sink.write({"kind": "step", "step": 1})
    with monkeypatch.context() as full:
        full.setattr(sink, "_stream", FullDisk)
        sink.write({"kind": "step", "step": 2})
        sink.write({"kind": "step", "step": 3})
    sink.write({"kind": "step", "step": 4})
    sink.close()
    assert [record["step"] for record in read_records(path)] == [1, 4]
    assert caplog.text.count("cannot be written") == 1


def test_missing_wandb_is_reported_with_the_way_to_install_it(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = tiny_config(wandb=WandbConfig(enabled=True))
    with pytest.raises(ConfigError, match=r"pip install -e '.\[wandb\]'"):
        open_tracker(config, tmp_path / "metrics.jsonl", [], "id")


def test_wandb_offline_keeps_one_run_id_over_attempts_and_no_secret(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    config = tiny_config(wandb=WandbConfig(enabled=True))
    Path(config.out).mkdir()
    for _ in range(2):
        tracker = open_tracker(config, tmp_path / "metrics.jsonl", [], "run-of-mine")
        tracker.log("step", 1, loss=2.5, sources={"alpha": {"loss": 1.0}})
        tracker.close()
    written = [path for path in Path(config.out).rglob("*") if path.is_file()]
    assert [path.name for path in written if path.suffix == ".wandb"] == ["run-run-of-mine.wandb"] * 2
    assert not any(b"0123456789" in path.read_bytes() for path in written)
