"""Two processes never write one folder."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sft.errors import StorageError
from sft.storage.folder_lock import folder_lock

ROOT = Path(__file__).parents[3]
HOLDER = """
import sys
from pathlib import Path
from sft.storage.folder_lock import folder_lock
with folder_lock(Path(sys.argv[1]), shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    sys.stdin.readline()
"""

Hold = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Starts another process that holds a lock until it reads a line or dies."""
    started: list[subprocess.Popen[str]] = []

    def start(path: Path, how: str = "alone") -> "subprocess.Popen[str]":
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path), how],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(holder)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        return holder

    yield start
    for holder in started:
        holder.kill()
        holder.communicate()


def test_a_second_process_is_refused_and_told_who_holds_it(hold: Hold, tmp_path: Path) -> None:
    holder = hold(tmp_path / "run" / ".lock")
    message = f"in use by process {holder.pid} on {os.uname().nodename}"
    with pytest.raises(StorageError, match=message) as caught, folder_lock(tmp_path / "run" / ".lock"):
        pytest.fail("held twice")
    assert str(tmp_path / "run") in str(caught.value)


def test_several_processes_hold_a_lease_together_if_each_asks_for_a_shared_one(hold: Hold, tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    hold(path, "shared")
    hold(path, "shared")
    with folder_lock(path, shared=True):
        pass
    with pytest.raises(StorageError, match="in use by process"), folder_lock(path):
        pytest.fail("held alone beside others")


def test_a_shared_lease_is_refused_beside_one_that_is_not(hold: Hold, tmp_path: Path) -> None:
    holder = hold(tmp_path / ".lock")
    with (
        pytest.raises(StorageError, match=f"in use by process {holder.pid}"),
        folder_lock(tmp_path / ".lock", shared=True),
    ):
        pytest.fail("held beside another")


def test_a_shared_lease_is_free_when_the_last_holder_ends(hold: Hold, tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    for holder in [hold(path, "shared"), hold(path, "shared")]:
        with pytest.raises(StorageError, match="in use"), folder_lock(path):
            pytest.fail("held alone beside others")
        holder.kill()
        holder.wait()
    with folder_lock(path):
        pass


def test_a_lease_that_guards_another_folder_names_that(hold: Hold, tmp_path: Path) -> None:
    hold(tmp_path / ".shards.lock")
    with (
        pytest.raises(StorageError, match="in use by process") as caught,
        folder_lock(tmp_path / ".shards.lock", of=tmp_path / "shards"),
    ):
        pytest.fail("held twice")
    assert str(caught.value).startswith(f"{tmp_path / 'shards'}: ")


def test_a_lease_is_free_when_its_block_ends(hold: Hold, tmp_path: Path) -> None:
    holder = hold(tmp_path / ".lock")
    holder.communicate("done\n")
    assert holder.returncode == 0
    (tmp_path / ".lock").write_text("process 1234567890 on a host with a long name")
    with folder_lock(tmp_path / ".lock"):
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {os.uname().nodename}"


def test_a_lease_is_free_when_its_process_is_killed(hold: Hold, tmp_path: Path) -> None:
    holder = hold(tmp_path / ".lock")
    holder.kill()
    holder.wait()
    with folder_lock(tmp_path / ".lock"):
        assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()


def test_one_process_cannot_hold_it_twice_either(tmp_path: Path) -> None:
    again = folder_lock(tmp_path / ".lock")
    with folder_lock(tmp_path / ".lock"), pytest.raises(StorageError, match=f"process {os.getpid()} "), again:
        pytest.fail("held twice")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_inside_frees_it_and_passes_through(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error), folder_lock(tmp_path / ".lock"):
        raise error
    with folder_lock(tmp_path / ".lock"):
        pass


def test_different_folders_do_not_stand_in_each_other_s_way(tmp_path: Path) -> None:
    with folder_lock(tmp_path / "a" / ".lock"), folder_lock(tmp_path / "b" / ".lock"):
        assert sorted(path.parent.name for path in tmp_path.glob("*/.lock")) == ["a", "b"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    with pytest.raises(StorageError, match="file"), folder_lock(tmp_path / "file" / ".lock"):
        pass
