"""A project folder in which the batch scripts run as sbatch would run them, with stubs in Slurm's and sft's place."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "slurm"
STUBS = Path(__file__).parent / "stubs"
DEADLINE_S = 10.0
JOB = {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "node1", "SLURM_CPUS_PER_TASK": "8", "TZ": "CST6"}


class Project:
    """Starts batch scripts and keeps what they, and the stubs they called, left behind."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._stub_folder = folder / "project", folder / "stub"
        self._spool = folder / "spool"
        for path in (self.folder, self._stub_folder, self._spool):
            path.mkdir()
        (self.folder / "slurm").symlink_to(SCRIPTS)
        self._log = folder / "log"
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, script: str, arguments: Sequence[str], environ: Mapping[str, str]) -> None:
        """Run a copy of the script from a spool folder, as Slurm does."""
        copied = shutil.copy(SCRIPTS / script, self._spool / "slurm_script")
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                ["bash", copied, *arguments],
                cwd=self.folder,
                env=self._environ(environ),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._running.append(process)

    def play(self, event: str) -> None:
        """Let one thing happen: `await FILE` of a stub, `touch FILE` for a stub, or `signal NAME` to the script."""
        what, name = event.split()
        if what == "await":
            self._await(name)
        elif what == "touch":
            (self._stub_folder / name).touch()
        else:
            self._running[-1].send_signal(signal.Signals[f"SIG{name}"])

    def finish(self) -> str:
        """Wait for the script; returns its calls, its log and its exit code."""
        code = self._running[-1].wait(DEADLINE_S)
        calls = self._stub_folder / "calls"
        text = "".join(f"call  {line.rstrip()}\n" for line in calls.read_text().splitlines()) if calls.exists() else ""
        text += "".join(f"log   {line}\n" for line in self._log.read_text().splitlines())
        for path in self._stub_folder.iterdir():
            path.unlink()
        return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", "DATE", text) + f"exit  {code}\n"

    def kill(self) -> None:
        """End what a failed test left running."""
        for process in self._running:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            process.wait()

    def _environ(self, extra: Mapping[str, str]) -> dict[str, str]:
        own = {
            "PATH": f"{STUBS}:{os.defpath}",
            "STUB_FOLDER": str(self._stub_folder),
            "SLURM_SUBMIT_DIR": str(self.folder),
        }
        return {**own, **JOB, **extra}

    def _await(self, name: str) -> None:
        give_up_s = time.monotonic() + DEADLINE_S
        while not (self._stub_folder / name).exists():
            assert time.monotonic() < give_up_s, f"no stub made {name}:\n{self._log.read_text()}"
            time.sleep(0.01)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """An empty project with the batch scripts."""
    made = Project(tmp_path)
    yield made
    made.kill()
