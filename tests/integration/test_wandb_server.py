"""The real wandb package against a stand-in server: whatever the server does, the run goes on and ends in time."""

import base64
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft.config.train import TrainConfig, WandbConfig
from sft.config.yaml_text import as_yaml
from sft.train.monitor.records import read_records
from tests.integration.wandb_server import wandb_server

pytest.importorskip("wandb")
ROOT = Path(__file__).parents[2]
CANARY = "canary0123456789canary0123456789canary01"
TIMEOUT_S = 1.0

REPORTS = f"""
import sys
from pathlib import Path
from sft.config.loading import load
from sft.config.train import TrainConfig
from sft.config.yaml_text import read_yaml
from sft.console.streams import command_environment
from sft.train.monitor import metrics, wandb
wandb.INIT_TIMEOUT_S = wandb.FINISH_TIMEOUT_S = {TIMEOUT_S}
with command_environment():
    config = load(TrainConfig, [read_yaml(Path(sys.argv[1]))]).config
    tracker = metrics.open_tracker(config, Path(config.out) / "metrics.jsonl", [], "run-of-mine")
    for step in range(1, 5):
        tracker.log("step", step, loss=1 / step)
    tracker.close()
    print("ended well")
"""


@pytest.fixture
def config(tiny_config: Callable[..., TrainConfig]) -> TrainConfig:
    config = tiny_config(wandb=WandbConfig(enabled=True, mode="online"))
    Path(config.out).mkdir()
    return config


def report_online(config: TrainConfig, url: str, home: Path) -> str:
    """What a process prints that reports four steps, all into metrics.jsonl, with a key in its environment."""
    file = home / "config.yaml"
    file.write_text(as_yaml(config))
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environ |= {"WANDB_BASE_URL": url, "WANDB_API_KEY": CANARY, "HOME": str(home)}
    started_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", REPORTS, str(file)],
        cwd=ROOT,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "ended well" in done.stdout
    assert time.monotonic() - started_s < 30  # the package's own limits are 90 s at the start and none at the end
    assert [record["step"] for record in read_records(Path(config.out) / "metrics.jsonl")] == [1, 2, 3, 4]
    assert with_canary(home) == []
    return done.stdout


def with_canary(folder: Path) -> list[Path]:
    """The files that hold the key."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 3
    return [path for path in files if CANARY.encode() in path.read_bytes()]


def test_records_arrive_and_the_key_only_where_it_belongs(config: TrainConfig, tmp_path: Path) -> None:
    with wandb_server("works") as server:
        said = report_online(config, server.url, tmp_path)
    assert [(row["optimizer_step"], row["step/loss"]) for row in server.rows()] == [(n, 1 / n) for n in range(1, 5)]
    assert "takes no more records" not in said
    assert "continuing offline" not in said
    sent = b"".join(server.bodies)
    secrets = (CANARY.encode(), base64.b64encode(f"api:{CANARY}".encode()), str(tmp_path / "config.yaml").encode())
    assert [secret for secret in secrets if secret in sent] == []
    assert CANARY not in said


@pytest.mark.parametrize("behaviour", ["denies", "fails", "hangs", "is gone"])
def test_a_server_that_cannot_be_used_at_the_start_is_done_without(
    behaviour: Any, config: TrainConfig, tmp_path: Path
) -> None:
    with wandb_server(behaviour) as server:
        url = server.url
        said = report_online(config, url, tmp_path) if behaviour != "is gone" else ""
    said = said or report_online(config, url, tmp_path)
    assert said.count("wandb cannot be reached, continuing offline") == 1
    assert any(path.name.startswith("offline-run") for path in (Path(config.out) / "wandb").iterdir())
    assert CANARY not in said


@pytest.mark.parametrize("behaviour", ["hangs after the start", "answers nonsense after the start"])
def test_a_server_that_is_lost_on_the_way_does_not_keep_the_run_from_ending(
    behaviour: Any, config: TrainConfig, tmp_path: Path
) -> None:
    with wandb_server(behaviour) as server:
        said = report_online(config, server.url, tmp_path)
    assert said.count("wandb takes no more records") <= 1
