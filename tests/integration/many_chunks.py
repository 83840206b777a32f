"""A mixture of many chunks, for tests of builds that are killed, go on or are shared out."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.config.data import BuildConfig
from sft.data.build.build import build
from sft.data.build.chunk import ChunkFile

ROOT = Path(__file__).parents[2]

# Notes every row that it converts, and at one of them ends a process; what to do is read when a worker starts.
CONVERT = '''\
"""Rows that hold the texts of their turns."""

import json
import os
import signal
from pathlib import Path

from sft.chat.conversation import Message, from_turns

PLAN = json.loads((Path(__file__).parents[1] / "plan.json").read_text())


def convert(row):
    """The turns, the user's first."""
    turns = row["turns"]
    with Path(PLAN["log"]).open("a") as log:
        log.write(row["id"] + "\\n")
    if row["id"] == PLAN["die_at"]:
        if PLAN["victim"] == "all":
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getppid() if PLAN["victim"] == "parent" else os.getpid(), signal.SIGKILL)
    return from_turns(Message("assistant" if n % 2 else "user", text) for n, text in enumerate(turns))
'''
NUM_FILES, ROWS_PER_FILE, ROWS_OF_LARGE_FILE = 12, 50, 2050
FILES = "sources.alpha.files=[alpha*.jsonl]"
NUM_CHUNKS = NUM_FILES + 2
"""Every file of alpha is a chunk; beta's file is cut behind 2000 rows."""


Rows = dict[str, list[str]]
"""Turns by the name of their row."""


def alpha(file: int) -> Rows:
    """Rows of one of alpha's files; the last but one has no answer, the last one repeats one of the file before."""
    rows = {f"alpha{file:02}.{n}": [f"alpha {file} {n}?", f"answer {n * n}"] for n in range(ROWS_PER_FILE - 2)}
    repeated = [f"alpha {max(0, file - 1)} 5?", "answer 25"]
    return {**rows, f"alpha{file:02}.{ROWS_PER_FILE - 2}": ["no answer"], f"alpha{file:02}.last": repeated}


BETA: Rows = {f"beta.{n}": [f"beta {n}?", f"answer {n * n}"] for n in range(ROWS_OF_LARGE_FILE)}
EVERY_ROW = Counter([name for file in range(NUM_FILES) for name in alpha(file)] + list(BETA))


def lines(rows: Rows) -> str:
    return "".join(json.dumps({"id": name, "turns": turns}) + "\n" for name, turns in rows.items())


@dataclass(frozen=True)
class Bench:
    """A mixture of many chunks whose recipes note what they convert and kill at will."""

    raw: Any

    @property
    def recipes(self) -> Path:
        return Path(self.raw.recipes)

    @property
    def sources_dir(self) -> Path:
        return Path(self.raw.sources_dir)

    def out(self, name: str) -> Path:
        """A place for a build."""
        return Path(self.raw.mixture).parent / name

    def config(self, out: Path, *settings: str) -> BuildConfig:
        """The settings of a build."""
        config: BuildConfig = self.raw.config(*self.settings(out, *settings))
        return config

    def plan(self, log: str, die_at: str | None = None, victim: str = "itself") -> Path:
        """What the next build does; the file that will hold the rows that it converted."""
        path = self.recipes / f"{log}.log"
        path.touch()
        plan = {"log": str(path), "die_at": die_at, "victim": victim}
        (self.recipes / "plan.json").write_text(json.dumps(plan))
        return path

    def settings(self, out: Path, *settings: str) -> list[str]:
        return [*self.raw.settings, FILES, "seq_len=128", f"out={out}", *settings]

    def build(self, out: Path, *settings: str) -> dict[str, bytes]:
        """Build in this process; the published bytes."""
        return content(build(self.config(out, *settings), self.recipes).folder)

    def undisturbed(self) -> dict[str, bytes]:
        log = self.plan("undisturbed")
        result = self.build(self.out("undisturbed"))
        assert rows(log) == EVERY_ROW
        return result

    def start(self, out: Path, *words: str) -> subprocess.Popen[bytes]:
        """Start `sft build` in a process group of its own; its messages go to a file beside `out`."""
        command = [sys.executable, "-m", "sft.cli.main", "build", str(self.raw.mixture), *self.settings(out, *words)]
        with Path(f"{out}.messages").open("wb") as messages:
            return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=messages, start_new_session=True)

    def finish(self, out: Path, *words: str) -> tuple[int, str]:
        """Run `sft build` and wait for all its processes: exit code and messages."""
        process = self.start(out, *words)
        process.communicate(timeout=60)  # ends when the last process has closed its output
        return process.returncode, Path(f"{out}.messages").read_text()


def write_bench(write_mixture: Callable[..., Any]) -> Bench:
    """A bench in the folder of the test."""
    raw = write_mixture(alpha=[], beta=[])
    for name in ("alpha", "beta"):
        (raw.recipes / name / "convert.py").write_text(CONVERT)
    (raw.sources_dir / "alpha.jsonl").unlink()
    for file in range(NUM_FILES):
        (raw.sources_dir / f"alpha{file:02}.jsonl").write_text(lines(alpha(file)))
    (raw.sources_dir / "beta.jsonl").write_text(lines(BETA))
    return Bench(raw)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(log: Path) -> Counter[str]:
    """The rows that a build converted, and how often."""
    return Counter(log.read_text().splitlines())


def work(out: Path) -> Path:
    return out.parent / f".{out.name}.work"


def finished(out: Path) -> dict[str, tuple[int, int]]:
    """The whole chunks of an unfinished build, with what tells whether a file was written again."""
    paths = [path for path in work(out).glob("*") if ChunkFile.open(path) is not None]
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def rows_of(out: Path) -> set[str]:
    """The rows of all finished chunks."""
    found: set[str] = set()
    for name in finished(out):
        chunk = ChunkFile.open(work(out) / name)
        assert chunk is not None
        start, count = map(int, name.split("-")[1:])
        rows = BETA if chunk.source == "beta" else alpha(int(chunk.file.removeprefix("alpha").removesuffix(".jsonl")))
        found.update(list(rows)[start : start + count])
    return found


def leftovers(out: Path) -> set[str]:
    """What a finished build left in its folder's folder, beside its lock."""
    ours = {out.name, f".{out.name}.lock", f"{out.name}.messages"}
    return {path.name for path in out.parent.iterdir() if out.name in path.name} - ours
