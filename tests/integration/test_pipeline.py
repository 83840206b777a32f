"""Every stage on the bundled sample, as a user runs it."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sft.cli.main import main
from sft.hashing import file_sha256
from tests.support.docs import DEMO, run_in

PROJECT = Path(__file__).parents[2]
MIXTURE = "data_recipes/mixtures/sample.yaml"


def run(*words: str, stdin: str | None = None, cwd: Path = PROJECT, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sft.cli.main", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "COLUMNS": "120", **environ},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )


def build(out: Path, tokenizer_file: Path, *settings: str, **environ: str) -> dict[str, str]:
    result = run("build", MIXTURE, f"tokenizer={tokenizer_file}", f"out={out}", *settings, **environ)
    assert result.returncode == 0, result.stderr
    return {path.name: file_sha256(path) for path in out.iterdir()}


def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path, tokenizer_file: Path) -> None:
    alone = build(tmp_path / "alone", tokenizer_file, "workers=1")
    together = build(
        tmp_path / "together",
        tokenizer_file,
        "workers=4",
        PYTHONHASHSEED="7",
        TZ="Asia/Tokyo",
        LC_ALL="C",
    )
    assert together == alone
    named = {"manifest.json", "README.md", "report.html", "documents.arrow", "quarantine.jsonl", "tokenizer.json"}
    assert named <= alone.keys()


def test_build_does_not_depend_on_where_things_lie(tmp_path: Path, tokenizer_file: Path) -> None:
    here = build(tmp_path / "here", tokenizer_file, "workers=1")
    shutil.copytree(PROJECT / "data_recipes", tmp_path / "elsewhere/recipes")
    moved = tmp_path / "elsewhere/recipes"
    assert (
        main(
            [
                "build",
                str(moved / "mixtures/sample.yaml"),
                f"sources_dir={moved / 'sample'}",
                f"tokenizer={tokenizer_file}",
                f"out={tmp_path / 'there'}",
                "workers=1",
            ]
        )
        == 0
    )
    assert {path.name: file_sha256(path) for path in (tmp_path / "there").iterdir()} == here


def test_every_raw_row_is_kept_or_named_in_quarantine(tmp_path: Path, tokenizer_file: Path) -> None:
    build(tmp_path / "shards", tokenizer_file, "workers=1")
    manifest = json.loads((tmp_path / "shards/manifest.json").read_text())
    quarantine = [json.loads(line) for line in (tmp_path / "shards/quarantine.jsonl").read_text().splitlines()]
    assert all(item["reason"] and item["file"] for item in quarantine)
    for name, facts in manifest["sources"].items():
        dropped = {(item["file"], item["row"]) for item in quarantine if item["source"] == name}
        assert facts["rows_read"] == facts["rows_kept"] + len(dropped), name
        assert sum(facts["reasons"].values()) == len(dropped)


def test_inspect_shows_roles_and_traces_a_token_to_its_row(
    tmp_path: Path, tokenizer_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = tmp_path / "shards"
    build(shards, tokenizer_file, "workers=1")
    assert main(["inspect", str(shards), "--pack", "0"]) == 0
    shown = capsys.readouterr().out
    assert "<|SYSTEM|>" in shown
    assert "<|ASSISTANT|>" in shown
    assert "with loss" in shown
    assert main(["inspect", str(shards), "--pack", "0", "--trace", "5"]) == 0
    traced = capsys.readouterr().out
    assert "without loss" in traced
    assert ", row " in traced
    assert main(["inspect", str(shards), "--pack", "999"]) == 78
    assert "numbered from 0" in capsys.readouterr().err


# One worker runs them all, so that the demo is made once.
in_one_worker = pytest.mark.xdist_group("demo")


@pytest.fixture(scope="module")
def demo(demo_folder: tuple[Path, list[str]]) -> tuple[Path, str]:
    """The demo's folder and what it printed."""
    folder, printed = demo_folder
    assert (folder / "runs/demo/model").is_dir(), printed
    return folder / "runs/demo", "\n".join(printed)


@in_one_worker
def test_demo_learns_to_answer_its_training_prompts(demo: tuple[Path, str]) -> None:
    out, printed = demo
    assert "3 of 3 training prompts answered word for word" in printed
    assert "you> " in printed
    losses = json.loads((out / "run/eval.json").read_text())[0]["losses"]
    assert {"alpaca", "gpt4all", "hh", "dolly", "sharegpt", "all"} <= losses.keys()


@in_one_worker
def test_demo_run_again_finds_everything_done(demo: tuple[Path, str]) -> None:
    out, _ = demo
    before = file_sha256(out / "shards/manifest.json")
    printed = run_in(out.parents[1], DEMO, check=True)
    assert "finished already" in "\n".join(printed)
    assert file_sha256(out / "shards/manifest.json") == before


@in_one_worker
@pytest.mark.parametrize("folder", ["shards", "run"])
def test_demo_output_verifies(demo: tuple[Path, str], folder: str) -> None:
    out, _ = demo
    result = run("verify", f"runs/demo/{folder}", cwd=out.parents[1])
    assert result.returncode == 0, result.stderr
    assert "all as they must be" in result.stdout or "every hash true" in result.stdout


@in_one_worker
def test_chat_answers_line_by_line_and_remembers(demo: tuple[Path, str]) -> None:
    out, _ = demo
    sample = json.loads((out / "run/eval.json").read_text())[0]["samples"][0]
    stdin = f"{sample['prompt']}\n/reset\n{sample['prompt']}\n/exit\nnever read\n"
    result = run("chat", str(out / "model"), "generation.temperature=0", stdin=stdin)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(sample["answer"]) == 2
    assert "(a new conversation)" in result.stdout


@in_one_worker
def test_exported_model_is_as_good_as_the_checkpoint(demo: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = demo
    result = run("eval", str(out / "model"), f"shards={out / 'shards'}", f"out={tmp_path / 'eval.json'}")
    assert result.returncode == 0, result.stderr
    exported = json.loads((tmp_path / "eval.json").read_text())[0]["losses"]["all"]
    trained = json.loads((out / "run/eval.json").read_text())[0]["losses"]["all"]
    assert exported["tokens"] == trained["tokens"]
    assert exported["loss"] == pytest.approx(trained["loss"], abs=1e-6)


@pytest.mark.parametrize(
    "config", sorted(path.name for path in (PROJECT / "configs").glob("*.yaml")), ids=lambda name: name
)
def test_every_shipped_config_loads(config: str) -> None:
    result = run("train", f"configs/{config}", "--print-config")
    assert result.returncode == 0, result.stderr
    assert f"configs/{config}" in result.stdout


@pytest.mark.parametrize(("size", "batch", "warmup"), [("3b", 256, 50), ("7b", 128, 100)])
def test_card_values_are_in_the_configs(size: str, batch: int, warmup: int) -> None:
    from sft.config.loading import load
    from sft.config.train import TrainConfig
    from sft.config.yaml_text import read_yaml

    config = load(TrainConfig, [read_yaml(PROJECT / f"configs/stablelm_tuned_alpha_{size}.yaml")]).config
    assert (config.batch_packs, config.optimizer.warmup_steps) == (batch, warmup)
    assert (config.optimizer.lr, config.optimizer.betas, config.optimizer.weight_decay) == (2e-5, (0.9, 0.99), 0.01)
    assert config.precision == "fp16"
    assert config.model.preset == f"stablelm_{size}"


def test_killed_build_leaves_no_worker_behind(tmp_path: Path, tokenizer_file: Path) -> None:
    rows = tmp_path / "raw/alpaca.jsonl"
    rows.parent.mkdir()
    row = {"instruction": "Count to three.", "input": "", "output": "one two three " * 50}
    rows.write_text((json.dumps(row) + "\n") * 200_000)
    off = [f"sources.{name}.enabled=false" for name in ("gpt4all", "hh", "dolly", "sharegpt")]
    command = [sys.executable, "-m", "sft.cli.main", "build", MIXTURE, *off, f"sources_dir={rows.parent}", "workers=2"]
    parent = subprocess.Popen(
        [*command, f"tokenizer={tokenizer_file}", f"out={tmp_path / 'shards'}"],
        cwd=PROJECT,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(lambda: len(processes_of(parent.pid)) >= 3)  # with both workers
    parent.kill()
    parent.wait()
    wait_for(lambda: not processes_of(parent.pid))
    assert not (tmp_path / "shards").exists()


def processes_of(session: int) -> list[int]:
    """The processes of a session that run Python code of ours."""
    found = subprocess.run(
        ["ps", "-s", str(session), "-o", "pid=,stat=,args="], capture_output=True, text=True, check=False
    )
    lines = [line.split(maxsplit=2) for line in found.stdout.splitlines()]
    return [int(pid) for pid, state, words in lines if not state.startswith("Z") and "resource_tracker" not in words]


def wait_for(condition: Callable[[], object], limit_s: float = 30.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
