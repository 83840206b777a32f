"""A command goes on when nobody reads its output, and cleans up when it is terminated."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PRINTS = """
import sys
from sft.console.streams import command_environment
with command_environment():
    for number in range(20000):
        print(number)
    print("worked", file=sys.stderr)
"""

WAITS = """
import sys, time
from pathlib import Path
from sft.storage.atomic import staged
from sft.console.streams import command_environment
with command_environment(), staged(Path(sys.argv[1])) as folder:
    (folder / "file").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_reads_does_not_stop_the_work(unbuffered: str) -> None:
    reader, writer = os.pipe()
    environ = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    child = subprocess.Popen(
        [sys.executable, "-c", PRINTS], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, env=environ
    )
    os.close(writer)
    os.close(reader)
    _, errors = child.communicate(timeout=30)
    assert (child.returncode, errors) == (0, "worked\n")


def test_text_that_the_terminal_cannot_show_is_shown_as_an_escape() -> None:
    code = "from sft.console.streams import command_environment\nwith command_environment(): print('a → b')"
    environ = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, env=environ, check=True)
    assert done.stdout == b"a \\u2192 b\n"


def test_a_terminated_command_leaves_nothing_half_written(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", WAITS, str(tmp_path / "final")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=30)
    assert child.returncode == 143
    assert list(tmp_path.iterdir()) == []
