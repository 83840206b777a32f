"""Family H: disks that refuse, folders that others use, clocks that jump."""

import ctypes
import errno
import fcntl
import os
import re
import resource
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

from tests.faults import failpoints
from tests.faults.fixtures import NUM_STEPS, content
from tests.faults.oracle import Barred, FinalState, Lost, Unfired, Wrong, checkpoint, records, saved_steps
from tests.faults.process import Hook, Journal, Victim
from tests.faults.sandbox import Bench, refused, require, says
from tests.support.configs import changed

ENGINE_STEP = "sft.train.engine.native:TorchEngine.step"
MEGABYTE = 1_000_000
CHECKPOINT_BYTES = 10 * MEGABYTE
ROOM = 80 * MEGABYTE
NEW_MOUNT_NAMESPACE, PRIVATE_RECURSIVELY, BIND, READ_ONLY_AGAIN = 0x20000, 0x44000, 0x1000, 0x1021
NOBODY = 65534
FIRST_SAVE_SYNCED = r"fsync checkpoints/\.staging-step-00000004"


def full_while_saving(bench: Bench) -> str:
    """The disk fills up within a save, or a file may grow no further; the save is dropped and the run goes on."""
    is_limit = bench.n % 3 == 2 or not may_mount()
    config = bench.config(out=str((bench.folder if is_limit else tiny_disk(bench)) / "run"))
    out, step = Path(config.out), (4, 8)[bench.n % 2]
    left = bench.rng.randint(100_000, CHECKPOINT_BYTES - 500_000)
    fill, free = limit_size(left // 3) if is_limit else fill_disk(out, left)
    full = failpoints.at_point(out, rf"mkdir checkpoints/\.staging-step-{step:08d}", fill)

    def free_later(path: Path) -> None:
        for thread in threading.enumerate():
            if thread.name == "save":
                thread.join()
        free(path)

    victim = bench.train(config, full, in_step(step + 1, free_later))
    require(victim, 0, rf"step {step} was not saved, training continues")
    if step in saved_steps(out):
        raise Wrong(f"step {step} was published from a full disk")
    bench.is_alike(config)
    return "S"


def full_for_good(bench: Bench) -> str:
    """The disk stays full: the third save in a row that fails ends the run, old saves intact."""
    if not may_mount():
        raise Barred("needs the right to mount")
    config = bench.config(out=str(tiny_disk(bench) / "run"), checkpoint__every_steps=2)
    out = Path(config.out)
    first = bench.rng.choice((4, 6))
    fill, _ = fill_disk(out, bench.rng.randint(100_000, CHECKPOINT_BYTES - 500_000))
    victim = bench.train(config, failpoints.at_point(out, rf"mkdir checkpoints/\.staging-step-{first:08d}", fill))
    require(victim, 74, f"step {first} was not saved", f"step {first + 2} was not saved")
    ending = refused(victim, 74, "checkpoints")
    if saved_steps(out)[-1] != first - 2:
        raise Lost(f"{saved_steps(out)} are left")
    (out.parent / "ballast").unlink()
    bench.kept(config, first)
    bench.ends_alike(config)
    return ending


def full_log(bench: Bench) -> str:
    """The disk of the metrics, or of the log, fills up; training goes on."""
    if not may_mount():
        raise Barred("needs the right to mount")
    disk, out = tiny_disk(bench), bench.folder / "run"
    config = bench.config(
        evaluation__every_steps=0 if bench.n % 2 else 1
    )  # so many records that they need a second block
    fill, free = fill_disk(disk / "here", 0)
    hooks = [in_step(bench.rng.randint(2, 6), fill), *([in_step(9, free)] if bench.n % 4 < 2 else [])]
    if bench.n % 2:

        def log_there(_journal: Journal) -> None:
            descriptor = os.open(disk / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)

        talk = failpoints.on_call(ENGINE_STEP, lambda number, _journal: print(f"a line of step {number}", flush=True))
        require(bench.train(config, log_there, talk, *hooks), 0)
        bench.is_alike(config)
        return "S"
    (disk / "run").mkdir()
    (bench.folder / "large").mkdir()
    (disk / "run" / "checkpoints").symlink_to(bench.folder / "large")
    out.symlink_to(disk / "run")
    victim = bench.train(config, *hooks)
    if bench.n % 4 == 2:  # the ledger lies there too, and no checkpoint may be ahead of it
        require(victim, 74, "metrics.jsonl cannot be written, records are lost", "ledger.jsonl: cannot be written")
        free(Path())
        bench.ends_alike(changed(config, evaluation__every_steps=0))
        return "R 74"
    require(victim, 0, "metrics.jsonl cannot be written, records are lost")
    if victim.messages.count("records are lost") != 1:
        raise Wrong("warned more than once")
    shutil.copytree(disk / "run", bench.folder / "copy")
    _alike_but_records(bench, bench.folder / "copy")
    return "S"


def _alike_but_records(bench: Bench, out: Path) -> None:
    wanted, found = bench.material.straight("fp32").state, FinalState.of(out, NUM_STEPS)
    if not all(record in wanted.records for record in found.records):
        raise Wrong("records that are not the undisturbed run's")
    if differences := [
        text for text in wanted.differences(found) if not text.startswith(("metrics", "state eval_loss"))
    ]:
        raise Wrong(f"ends otherwise than undisturbed: {differences}")


def refusing(bench: Bench) -> str:
    """The folder becomes read-only, loses its permission, or has no inode left."""
    way = ("read-only", "permission", "inodes", "start")[bench.n % 4]
    if way in ("read-only", "inodes") and not may_mount():
        raise Barred("needs the right to mount")
    folder = bench.folder if way in ("permission", "start") else tiny_disk(bench, inodes=60)
    config = bench.config(
        out=str(folder / "run"), checkpoint__every_steps=2, checkpoint__async_save=bool(bench.n // 4 % 2)
    )
    out = Path(config.out)
    hooks: list[Hook] = []
    undo = lambda: None  # noqa: E731
    if way == "read-only":
        hooks = [in_step(3, lambda _: make_read_only(out / "checkpoints"))]
        undo = lambda: _LIBC.umount(os.fsencode(out / "checkpoints"))  # noqa: E731
    elif way == "inodes":
        hooks = [in_step(3, lambda _: _use_up_inodes(folder))]
        undo = lambda: shutil.rmtree(folder / "many")  # noqa: E731
    elif way == "permission":
        hooks = [as_nobody(bench), in_step(3, lambda _: (out / "checkpoints").chmod(0o500))]
        undo = lambda: (out / "checkpoints").chmod(0o700)  # noqa: E731
    else:
        out.mkdir()
        hooks = [as_nobody(bench), lambda journal: (journal.fire(way), out.chmod(0o500))[0]]
        undo = lambda: out.chmod(0o700)  # noqa: E731
    victim = bench.train(config, *hooks)
    require(victim, 74)
    ending = refused(victim, 74, str(out))
    undo()
    if way != "start" and not config.checkpoint.async_save and saved_steps(out) != [2]:
        raise Lost(f"{saved_steps(out)} are left")
    bench.ends_alike(config)
    return ending


def flaky(bench: Bench) -> str:
    """A system call of a save fails once, or takes long: the run goes on, with or without that save."""
    config, points = bench.config(), bench.material.save_points
    out = Path(config.out)
    point = points[(bench.n * 7919) % len(points)]
    number = (errno.EIO, errno.ESTALE, errno.EINTR, errno.EDQUOT, 0)[bench.n % 5]
    action = failpoints.fail(number) if number else lambda _: time.sleep(1.0)
    victim = bench.train(config, failpoints.at_point(out, failpoints.exactly(point), action))
    if not (victim.wait(), victim.fired)[1]:
        raise Unfired(point)
    if victim.wait() == 74 and f"step-{NUM_STEPS:08d}" in point:  # the last save has no later one to make up for it
        says(victim, "checkpoints")
        return bench.ends_alike(config)
    if code := victim.wait():
        raise Wrong(f"{point}: exit code {code}: {victim.messages[-600:]}")
    bench.is_alike(config)
    return "S"


def flaky_reading(bench: Bench) -> str:
    """A file of a checkpoint cannot be read when the run goes on: it does, or says so."""
    config = bench.finished()
    out = Path(config.out)
    shutil.rmtree(checkpoint(out, NUM_STEPS))
    names = sorted(path.name for path in checkpoint(out, 8).iterdir())
    pattern = failpoints.exactly(f"read checkpoints/step-00000008/{names[bench.n % len(names)]}")
    action = failpoints.fail((errno.EIO, errno.ESTALE, errno.EACCES)[bench.n % 3])
    victim = bench.train(config, failpoints.at_point(out, pattern, action, visit=1))
    if not (victim.wait(), victim.fired)[1]:
        raise Unfired(pattern)
    if victim.wait() != 0:
        refused(victim, 74, "step-00000008")
        return bench.ends_alike(config)
    bench.is_alike(config)
    return "S"


def failing_sync(bench: Bench) -> str:
    """fsync fails: what is not known to be on disk is never published."""
    config, out = bench.config(), Path(bench.config().out)
    names = [point for point in dict.fromkeys(bench.material.save_points) if re.match(FIRST_SAVE_SYNCED, point)]
    trip = failpoints.at_point(out, failpoints.exactly(names[bench.n % len(names)]), failpoints.fail(errno.EIO))
    victim = bench.train(config, trip)
    require(victim, 0, "was not saved, training continues")
    if 4 in saved_steps(out):
        raise Wrong("published what was not synced")
    bench.is_alike(config)
    return "S"


def failing_sync_of_name(bench: Bench) -> str:
    """fsync of the folder that holds the checkpoints fails once; a stop is asked for in the same step."""
    config, out = bench.config(), Path(bench.config().out)
    step = (4, 8)[bench.n % 2]
    trip = failpoints.at_point(out, "fsync checkpoints", failpoints.fail(errno.EIO), visit=step // 4)
    ask = in_step(step, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    victim = bench.train(config, trip, ask)
    require(victim, 75, f"after step {step}")
    bench.kept(config)
    return bench.ends_alike(config)


def two_jobs(bench: Bench) -> str:
    """A second job starts on the same folder: it is refused, the first one does not notice."""
    config, step = bench.config(checkpoint__async_save=False), bench.rng.randint(1, 11)
    go = bench.folder / "go"

    def hold(number: int, journal: Journal) -> None:
        if number == step:
            journal.fire("both run")
            while not go.exists():
                time.sleep(0.005)

    first = bench.train(config, failpoints.on_call(ENGINE_STEP, hold))
    _wait_for(first)
    before = content(Path(config.out))
    second = bench.train(config)
    ending = refused(second, 74, f"in use by process {first.pid} on ")
    if content(Path(config.out)) != before:
        raise Lost("the second job changed the folder")
    go.touch()
    if code := first.wait():
        raise Wrong(f"the first job ended with {code}: {first.messages[-600:]}")
    bench.is_alike(config)
    return ending


def locks(bench: Bench) -> str:
    """The lock of a dead job is taken over, that of a living one is not."""
    config = bench.finished()
    lock = Path(config.out) / ".lock"
    shutil.rmtree(checkpoint(Path(config.out), NUM_STEPS))
    lock.write_text(f"process {os.getpid()} on {os.uname().nodename}")
    if bench.n % 2 == 0:
        return bench.ends_alike(config)
    with lock.open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        ending = refused(bench.train(config), 74, "in use by process")
    bench.ends_alike(config)
    return ending


def jumping_clock(bench: Bench) -> str:
    """The wall clock jumps by a day within a job that has an hour left."""
    config, step = bench.config(), bench.rng.randint(1, 11)
    jump_s = (86400, -86400)[bench.n % 2]

    def jump(journal: Journal) -> None:
        now_s = time.time
        shift_s = 0

        def move(number: int, _journal: Journal) -> None:
            nonlocal shift_s
            if number == step:
                journal.fire(f"{jump_s} s")
                shift_s = jump_s

        failpoints.on_call(ENGINE_STEP, move)(journal)
        failpoints.replace("time:time", lambda _original: now_s() + shift_s)

    victim = bench.train(config, jump, environ={"SLURM_JOB_END_TIME": str(int(time.time()) + 3600)})
    require(victim, 0)
    if [record["step"] for record in records(Path(config.out)) if record["kind"] == "save"] != [4, 8, 12]:
        raise Wrong("saved at other times")
    bench.is_alike(config)
    return "S"


def contradicting_times(bench: Bench) -> str:
    """The newest checkpoint has the oldest times."""
    config = bench.finished()
    out = Path(config.out)
    shutil.rmtree(checkpoint(out, NUM_STEPS))
    for step, time_s in ((4, time.time()), (8, bench.rng.randrange(10**9))):
        for path in [*checkpoint(out, step).iterdir(), checkpoint(out, step)]:
            os.utime(path, (time_s, time_s))
    return bench.ends_alike(config)


# ------------------------------------------------------------------------------------------------ means


def may_mount() -> bool:
    """Whether this process may have disks of its own."""
    return os.geteuid() == 0 and _LIBC.unshare(NEW_MOUNT_NAMESPACE) == 0


def tiny_disk(bench: Bench, inodes: int = 0) -> Path:
    """A small file system that goes when this process ends."""
    folder = bench.folder / "disk"
    folder.mkdir()
    if _LIBC.mount(b"none", b"/", None, PRIVATE_RECURSIVELY, None):
        raise Barred("mounts cannot be made private")
    options = f"size={ROOM},nr_inodes={inodes}" if inodes else f"size={ROOM}"
    mount(folder, 0, options)
    return folder


def make_read_only(folder: Path) -> None:
    """Let nothing more be written below a folder, as after an error of its file system."""
    for flags in (BIND, READ_ONLY_AGAIN):
        mount(folder, flags, source=folder)


def mount(folder: Path, flags: int, options: str = "", source: Path = Path("none")) -> None:
    """Mount a file system in memory, or a folder upon itself."""
    if _LIBC.mount(os.fsencode(source), os.fsencode(folder), b"tmpfs", flags, options.encode() or None):
        raise Barred(f"mount: {os.strerror(ctypes.get_errno())}")


def fill_disk(out: Path, left: int) -> tuple[failpoints.Action, failpoints.Action]:
    """Actions: leave so many bytes of the disk that holds a folder, and give all back."""
    ballast = out.parent / "ballast"

    def fill(_path: Path) -> None:
        count = max(0, shutil.disk_usage(out.parent).free - left)
        with ballast.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, count) if count else None

    return fill, lambda _path: ballast.unlink()


def limit_size(num_bytes: int) -> tuple[failpoints.Action, failpoints.Action]:
    """Actions: let no file grow beyond a size, and allow it again."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    return (
        lambda _path: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1])),
        lambda _path: resource.setrlimit(resource.RLIMIT_FSIZE, before),
    )


def in_step(step: int, action: failpoints.Action) -> Hook:
    """Act right before the update of a step."""

    def act(number: int, journal: Journal) -> None:
        if number == step:
            journal.fire(f"in step {step}")
            action(Path())

    return failpoints.on_call(ENGINE_STEP, act)


def as_nobody(bench: Bench) -> Hook:
    """Run without the rights of root, which no permission keeps out."""
    folder = bench.folder
    for path, mode in ((folder.parent, 0o777), (folder, 0o777), (bench.material.shards, 0o755)):
        path.chmod(mode)

    def become(_journal: Journal) -> None:
        if os.geteuid():
            return
        for path in [folder / "run", *(folder / "run").rglob("*")]:
            os.chown(path, NOBODY, NOBODY) if path.exists() else None
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)

    return become


def _use_up_inodes(folder: Path) -> None:
    (folder / "many").mkdir()
    try:
        for number in range(1000):
            (folder / "many" / str(number)).touch()
    except OSError:
        return


def _wait_for(victim: Victim) -> None:
    end_s = time.monotonic() + 30
    while not victim.fired and victim.ended() is None and time.monotonic() < end_s:
        time.sleep(0.005)


_LIBC: Any = ctypes.CDLL(None, use_errno=True)
