"""The wheel, installed beside the packages that it needs, works from an empty folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
BUNDLED = ("configs", "data_recipes", "slurm")

Run = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.xdist_group("wheel")  # one worker runs them all, so that it is made once


def call(command: list[str], folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command and return what it printed; it must succeed."""
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environ}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def pip(folder: Path, *words: str) -> str:
    done = call([sys.executable, "-m", "pip", "--disable-pip-version-check", *words, "--no-deps", "--no-index"], folder)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The wheel and what its making printed; from a copy, since setuptools leaves its folders beside the code."""
    folder = tmp_path_factory.mktemp("made")
    copy = folder / "copy"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, copy)
    for name in ("sft", *BUNDLED):
        shutil.copytree(PROJECT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    printed = pip(folder, "wheel", "--verbose", "--no-build-isolation", "--wheel-dir", str(folder), str(copy))
    (wheel,) = folder.glob("*.whl")
    return wheel, printed


@pytest.fixture(scope="module")
def installed(made: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the wheel is installed, and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    pip(folder, "install", "--quiet", "--target", str(folder), str(made[0]))
    return folder


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the commands run, empty before the first."""
    return tmp_path_factory.mktemp("empty")


@pytest.fixture
def sft(installed: Path, empty: Path) -> Run:
    """Runs the installed command."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(installed / "bin" / "sft"), *words]
        return call(command, empty, PYTHONPATH=str(installed), OMP_NUM_THREADS="1", COLUMNS="200")

    return run


def test_the_wheel_holds_every_file_of_the_repository_that_a_command_reads(made: tuple[Path, str]) -> None:
    packed = {name: data for name, data in _contents(made[0]).items() if name.startswith("sft/resources/")}
    there = {
        f"sft/resources/{path.relative_to(PROJECT)}": path.read_bytes()
        for folder in BUNDLED
        for path in (PROJECT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert len(there) > 30
    assert packed == there
    assert {"sft/py.typed", "sft/data/report/report.html"} <= _contents(made[0]).keys()


def test_the_wheel_holds_every_module_and_nothing_beside_the_package(made: tuple[Path, str]) -> None:
    modules = {path.relative_to(PROJECT).as_posix() for path in (PROJECT / "sft").rglob("*.py")}
    packed = _contents(made[0])
    assert modules <= packed.keys()
    assert {name.split("/")[0].removesuffix(".dist-info").split("-")[0] for name in packed} == {"sft"}


def test_setuptools_warns_of_no_package_that_is_left_out(made: tuple[Path, str]) -> None:
    printed = made[1].lower()
    assert "running build_py" in printed
    assert not [line for line in printed.splitlines() if "warning" in line and "byte-compiling" not in line]


def _contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_commands_run_the_wheel_and_not_the_repository(installed: Path, empty: Path) -> None:
    code = "import sft, sft.cli.main, sft.bundle; print(sft.__file__, sft.bundle.RESOURCES)"
    shown = call([sys.executable, "-c", code], empty, PYTHONPATH=str(installed)).stdout
    assert shown == f"{installed / 'sft/__init__.py'} {installed / 'sft/resources'}\n"


def test_every_command_introduces_itself(sft: Run) -> None:
    assert sft("--version").stdout == "sft 0.1.0\n"
    assert "doctor" in sft("--help").stdout


def test_fetch_reads_a_mixture_and_recipes_of_the_wheel(sft: Run, installed: Path) -> None:
    done = sft("fetch", "stablelm_tuned_alpha", "sources_dir=raw", "--print-config")
    mixture, recipe = (installed / "sft/resources/data_recipes" / name for name in ("mixtures", "dolly/recipe.yaml"))
    assert f"# {recipe}" in done.stdout
    assert done.stderr == (
        f"stablelm_tuned_alpha is not in this folder; sft uses its own copy: {mixture / 'stablelm_tuned_alpha.yaml'}\n"
    )


def test_a_mixture_of_ones_own_finds_the_recipes_of_the_wheel(sft: Run, empty: Path, installed: Path) -> None:
    (empty / "own.yaml").write_text("sources: {dolly: {max_rows: 5}}\n")
    done = sft("build", "own.yaml", "sources_dir=raw", "tokenizer=t", "out=o", "--print-config")
    assert f"# {installed / 'sft/resources/data_recipes/dolly/recipe.yaml'}" in done.stdout
    assert done.stderr == ""


def test_doctor_names_what_came_with_the_wheel(sft: Run, installed: Path) -> None:
    shown = sft("doctor").stdout
    assert "mixtures for sft build and sft fetch: sample, stablelm_tuned_alpha, " in shown
    assert "configs for sft train: small_cpu, " in shown
    assert f"batch scripts for Slurm: {installed / 'sft/resources/slurm'}\n" in shown
    assert (installed / "sft/resources/slurm/train.sbatch").is_file()


def test_the_sample_is_built_and_trained_on(sft: Run, empty: Path, tokenizer_file: Path) -> None:
    mixture = "data_recipes/mixtures/sample.yaml"
    built = sft("build", mixture, f"tokenizer={tokenizer_file}", "out=shards", "workers=1")
    assert f"{mixture} is not in this folder; sft uses its own copy: " in built.stderr
    assert "data_recipes/sample is not in this folder; sft uses its own copy: " in built.stderr
    folder = sft("train", "configs/tiny_cpu.yaml", "out=run", "--print-run-folder")
    assert folder.stdout == "run\n"
    sft("train", "tiny_cpu", "shards=shards", "out=run", "max_steps=2", "evaluation.every_steps=0")
    assert (empty / "run/checkpoints/step-00000002").is_dir()
    assert "every hash true" in sft("verify", "run").stdout
