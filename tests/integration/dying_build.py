"""Builds that die, for test_build_restart.py: `python -m tests.integration.dying_build MIXTURE FOLDER key=value…`.

A first build, below FOLDER/counted, lists its steps: every time that it opens, makes, renames or removes something
there. Then a build below FOLDER/NUMBER is ended by SIGKILL right before its step of that number, and run again, for
every step that writes and some that read. Each is a fork of this process. Prints a JSON line per death: its number and
step, how the two builds ended, and whether the first had published.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, TextIO

from sft.cli.main import main as command

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}
EVERY_READ = 10


def main() -> None:
    with Path(os.devnull).open("w") as nowhere:
        # The builds' own words go nowhere.
        stdout, sys.stdout = sys.stdout, nowhere
        die_at_every_step(*sys.argv[1:], stdout=stdout)


def die_at_every_step(mixture: str, folder: str, *settings: str, stdout: TextIO) -> None:
    words = ["build", mixture, *settings]
    # What it imports and compiles, no fork does again.
    if code := command([*words, f"out={folder}/warm/shards"]) or run(words, Path(folder) / "counted", None):
        sys.exit(code)
    steps = json.loads((Path(folder) / "counted" / "steps").read_text())
    for number, step in enumerate(steps):
        if step.startswith("read") and number % EVERY_READ:
            continue
        place = Path(folder) / str(number)
        died = run(words, place, number)
        published = (place / "shards").exists()
        facts = {"number": number, "step": step, "died": died, "published": published, "ended": run(words, place, None)}
        print(json.dumps(facts), file=stdout, flush=True)


def run(words: list[str], folder: Path, last: int | None) -> int:
    """The exit code of a build in a fork, negative for a signal; it dies before its step `last`."""
    pid = os.fork()
    if pid == 0:
        steps: list[str] = []
        sys.addaudithook(lambda event, arguments: _note(event, arguments, str(folder), steps, last))
        code = command([*words, f"out={folder}/shards"])
        text = json.dumps(steps)  # before the next line adds a step
        (folder / "steps").write_text(text)
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _note(event: str, arguments: tuple[Any, ...], folder: str, steps: list[str], last: int | None) -> None:
    # Folders are emptied by names relative to an open one, so that a path does not tell whose they are.
    if event not in CHANGES and not (event == "open" and str(arguments[0]).startswith(folder)):
        return
    if len(steps) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    writes = event in CHANGES or arguments[2] & (os.O_WRONLY | os.O_RDWR)
    kind = event.removeprefix("os.") if event in CHANGES else "write" if writes else "read"
    steps.append(f"{kind} {Path(str(arguments[0])).name}")


if __name__ == "__main__":
    main()
