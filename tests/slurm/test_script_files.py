"""What Slurm reads before a script runs, what shellcheck says of them, and what they take from the real sft."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sft.config.train import TrainConfig

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sbatch"))
SHELL_FILES = [*SCRIPTS, *sorted((ROOT / "slurm").glob("*.sh")), *sorted((ROOT / "tests/slurm/stubs").iterdir())]
DIRECTIVE = "#SBATCH "


def options(script: Path) -> dict[str, str]:
    """The options of the lines that sbatch reads: those before the first command."""
    found = {}
    for line in script.read_text().splitlines():
        if line and not line.startswith("#"):
            break
        if line.startswith(DIRECTIVE):
            name, _, value = line.removeprefix(DIRECTIVE).partition("=")
            found[name] = value
    return found


def test_there_is_a_script_for_each_stage() -> None:
    assert [script.stem for script in SCRIPTS] == ["build_data", "build_data_parts", "evaluate", "train"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_sbatch_reads_every_directive_and_finds_nothing_to_expand(script: Path) -> None:
    written = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    read = options(script)
    assert [f"{DIRECTIVE}{name}{'=' if value else ''}{value}" for name, value in read.items()] == written
    assert not any(set("$`\"' ") & set(name + value) for name, value in read.items())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_restarted_job_goes_on_in_the_log_of_the_first_start(script: Path) -> None:
    read = options(script)
    assert read["--requeue"] == ""
    assert read["--open-mode"] == "append"
    # A folder in the pattern would have to exist: without it Slurm fails the job and says so nowhere.
    assert re.fullmatch(r"[^/]*%A_%a[^/]*" if "--array" in read else r"[^/]*%j[^/]*", read["--output"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_job_asks_for_one_process_and_a_gpu_only_where_there_is_a_model(script: Path) -> None:
    read = options(script)
    assert (read["--nodes"], read["--ntasks"]) == ("1", "1")
    assert int(read["--cpus-per-task"]) > 1
    assert read.get("--gpus") == (None if script.stem.startswith("build_data") else "1")


def test_parts_are_counted_from_one_and_get_the_resources_of_the_build_that_merges_them() -> None:
    parts, build = (options(ROOT / "slurm" / f"{name}.sbatch") for name in ("build_data_parts", "build_data"))
    assert re.fullmatch(r"1-[1-9]\d*", parts.pop("--array"))
    own = ("--job-name", "--output")
    assert {name: parts[name] for name in parts if name not in own} == {
        name: build[name] for name in build if name not in own
    }


def test_training_is_warned_in_its_batch_shell_as_early_as_sft_wants_to_stop() -> None:
    margin_s = TrainConfig.stop_margin_s
    assert options(ROOT / "slurm" / "train.sbatch")["--signal"] == f"B:USR1@{margin_s:.0f}"


def test_shellcheck_finds_nothing() -> None:
    beside_python = str(Path(sys.executable).parent)
    shellcheck = shutil.which("shellcheck", path=f"{beside_python}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    command = [shellcheck, "--external-sources", "--source-path=SCRIPTDIR", *map(str, SHELL_FILES)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.stdout + found.stderr == ""


@pytest.mark.parametrize("out", ["runs/x", "runs/with space, a=b", "runs/it's: here  # 'now'"])
def test_run_folder_is_the_one_that_sft_train_resolves(out: str, tmp_path: Path) -> None:
    sft = tmp_path / "sft"
    sft.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sft.cli.main "$@"\n')
    sft.chmod(0o755)
    config = tmp_path / "config.yaml"
    config.write_text("shards: s\nout: elsewhere\nmodel: {weights: scratch, preset: tiny}\n")
    found = subprocess.run(
        ["bash", "-c", 'source slurm/lib.sh; run_folder_of "$@"', "bash", str(config), f"out={out}"],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tmp_path}:{os.defpath}", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (found.stdout, found.stderr) == (f"{out}\n", "")


LEAVES_EARLY = re.compile(
    r"\|\s*(?:head\b|read\b|grep\s+(?:-\w*[qm]|--quiet|--max-count)|sed\s[^|]*\bq\b|awk\s[^|]*\bexit\b)"
)


@pytest.mark.parametrize("script", SHELL_FILES, ids=lambda script: script.name)
def test_no_pipeline_ends_in_a_command_that_leaves_before_it_has_read_all(script: Path) -> None:
    """Under pipefail the command before it would now and then die of SIGPIPE, and the script with it."""
    text = script.read_text().replace("\\\n", " ")
    assert LEAVES_EARLY.findall("\n".join(line for line in text.splitlines() if not line.startswith("#"))) == []


@pytest.mark.parametrize(
    "line", ["x | head -n 1", "x |head", "x | grep -q y", "x | sed -n '1p;q'", "x | read -r y", "x | grep -m1 y"]
)
def test_such_pipelines_are_recognised(line: str) -> None:
    assert LEAVES_EARLY.search(line)
