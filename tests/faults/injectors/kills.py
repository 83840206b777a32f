"""Family A: killed, or told to stop."""

import ctypes
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sft.config.train import TrainConfig
from tests.faults import failpoints
from tests.faults.fixtures import NUM_STEPS, content
from tests.faults.oracle import Lost, Unfired, Wrong, checkpoint, is_whole, last_step, records, saved_steps
from tests.faults.process import Hook, Journal, Victim
from tests.faults.sandbox import KILLED, Bench, require, says

TERM, USR1, USR2, KILL = signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGKILL
ENGINE_STEP = "sft.train.engine.native:TorchEngine.step"
MOMENTS = {
    "forward": "sft.model.neox.model:NeoX.forward",
    "backward": "torch:Tensor.backward",
    "step": ENGINE_STEP,
    "data": "sft.data.batches.batch:join",
}
MICRO_BATCHES = 2
"""Calls of all of these but `step` in one optimizer step."""


def at_random_time(bench: Bench) -> str:
    """SIGKILL at random times, one to three in a row; every other injection is a power cut as well."""
    config, out = bench.config(checkpoint__async_save=bool(bench.n // 2 % 2)), Path(bench.config().out)
    is_power_cut, wanted = bool(bench.n % 2), 1 + bench.n % 3
    num_kills, longest_s = 0, 1.2 * bench.material.straight("fp32").run_s
    while num_kills < wanted:
        cut = bench.power_cut(out)
        victim = bench.train(config, *([cut.watch] if is_power_cut else []))
        if dies_after(victim, bench.rng.uniform(0, longest_s)):
            num_kills += 1
            reached = last_step(out)
            if is_power_cut:
                cut.strike(victim)
            bench.kept(config, reached)
        elif num_kills:
            break
        else:
            shutil.rmtree(out, ignore_errors=True)
            longest_s /= 2
    return bench.ends_alike(config)


def dies_after(victim: Victim, delay_s: float) -> bool:
    """Kill the victim after a delay; false if it has ended before."""
    end_s = time.monotonic() + delay_s
    while time.monotonic() < end_s and victim.ended() is None:
        time.sleep(0.002)
    victim.signal(KILL)
    if (code := victim.wait()) not in (0, KILLED):
        raise Wrong(f"exit code {code} before it was killed: {victim.messages[-600:]}")
    return code == KILLED


def at_trip_point(bench: Bench) -> str:
    """SIGKILL right before a step on disk of a save, the file half written where there is one."""
    points = bench.material.save_points
    point = points[(bench.n * 7919) % len(points)]
    visit = 1 + bench.rng.randrange(points.count(point))
    config, out = bench.config(), Path(bench.config().out)
    cut = bench.power_cut(out)
    action = failpoints.cut_and_kill(bench.rng.random()) if point.startswith("fsync") else failpoints.send(KILL)
    trip = failpoints.at_point(out, failpoints.exactly(point), action, visit=visit)
    victim = bench.train(config, cut.watch, trip)
    require(victim, KILLED)
    reached = last_step(out)
    if bench.n % 2:
        cut.strike(victim)
    bench.kept(config, reached)
    return bench.ends_alike(config)


def between_rename_and_sync(bench: Bench) -> str:
    """SIGKILL after the final name is given and before its folder is synced; the name may be lost with the power."""
    config, out = bench.config(), Path(bench.config().out)
    cut = bench.power_cut(out)
    trip = failpoints.at_point(
        out, r"rename .*/\.staging-step-.*", failpoints.send(KILL), visit=1 + bench.n % 3, after=True
    )
    victim = bench.train(config, cut.watch, trip)
    require(victim, KILLED)
    reached = last_step(out)
    cut.strike(victim)
    bench.kept(config, reached)
    return bench.ends_alike(config)


def long_after_saving(bench: Bench) -> str:
    """SIGKILL and power cut some steps after a save, which is safe by then: all that was not synced is lost."""
    config, out = bench.config(checkpoint__async_save=bool(bench.n % 2)), Path(bench.config().out)
    step = bench.rng.choice((6, 7, 10, 11))
    cut = bench.power_cut(out)
    victim = bench.train(config, cut.watch, failpoints.on_call(ENGINE_STEP, signalling(step, KILL)))
    require(victim, KILLED)
    cut.strike(victim, undone_share=1.0)
    if not config.checkpoint.async_save and saved_steps(out)[-1:] != [step - step % 4]:
        raise Lost(f"died in step {step}, {saved_steps(out)} are left")
    bench.kept(config)
    return bench.ends_alike(config)


def asked_in(bench: Bench) -> str:
    """SIGTERM in the forward pass, the backward pass, the update or while waiting for data."""
    moment = list(MOMENTS)[bench.n % len(MOMENTS)]
    step = bench.rng.randint(1, NUM_STEPS - 1)
    call = step if moment == "step" else MICRO_BATCHES * (step - 1) + bench.rng.randint(1, MICRO_BATCHES)
    return stops(bench, step, failpoints.on_call(MOMENTS[moment], signalling(call, TERM)))


def asked_repeatedly(bench: Bench) -> str:
    """Several signals in a row."""
    step = bench.rng.randint(1, NUM_STEPS - 1)
    numbers = [bench.rng.choice((TERM, USR1, USR2, signal.SIGHUP)) for _ in range(bench.rng.randint(2, 5))]
    return stops(bench, step, failpoints.on_call(ENGINE_STEP, signalling(step, *numbers)))


def asked_by_file_or_deadline(bench: Bench) -> str:
    """A STOP file appears, or the job's time is nearly up."""
    config, step = bench.config(stop_margin_s=0.0), bench.rng.randint(1, NUM_STEPS - 1)
    stop_file = Path(config.out) / "STOP"
    if bench.n % 2 == 0:

        def ask(number: int, journal: Journal) -> None:
            if number == step:
                journal.fire("STOP file")
                stop_file.touch()

        return stops(bench, step, failpoints.on_call(ENGINE_STEP, ask))
    started_s = time.time()

    def note(number: int, journal: Journal) -> None:
        if number == step:  # the deadline passes in the middle of this step at the latest
            time.sleep(max(0.0, started_s + DEADLINE_S - time.time()))
        if time.time() >= started_s + DEADLINE_S:
            journal.fire("deadline")

    environ = {"SLURM_JOB_END_TIME": str(started_s + DEADLINE_S)}
    return stops(bench, None, failpoints.on_call(ENGINE_STEP, note), environ=environ, config=config)


DEADLINE_S = 4.0


def stops(
    bench: Bench,
    step: int | None,
    *hooks: Hook,
    environ: dict[str, str] | None = None,
    config: TrainConfig | None = None,
) -> str:
    """Train until asked to stop; exactly one save of the step in progress, code 75, then on to the same end."""
    config = config or bench.config()
    out = Path(config.out)
    victim = bench.train(config, *hooks, environ=environ)
    require(victim, 75, "which is saved", "run the same command again")
    reached = last_step(out)
    if step is not None and reached != step:
        raise Wrong(f"asked in step {step}, stopped after step {reached}")
    if not is_whole(checkpoint(out, reached)):
        raise Lost(f"step {reached} was not saved")
    saves = [record["step"] for record in records(out) if record["kind"] == "save"]
    if saves.count(reached) != 1:
        raise Wrong(f"step {reached} was saved {saves.count(reached)} times")
    bench.kept(config)
    return bench.ends_alike(config)


def asked_while_saving(bench: Bench) -> str:
    """SIGTERM in the middle of a save, which finishes once."""
    points = [point for point in bench.material.save_points if "step-00000012" not in point]
    point = points[(bench.n * 7919) % len(points)]
    out = Path(bench.config().out)
    trip = failpoints.at_point(
        out, failpoints.exactly(point), failpoints.send(TERM), visit=1 + bench.rng.randrange(points.count(point))
    )
    return stops(bench, None, trip)


def killed_while_stopping(bench: Bench) -> str:
    """The grace period ends before the save that SIGTERM asked for does."""
    config, out = bench.config(), Path(bench.config().out)
    step = bench.rng.choice([step for step in range(1, NUM_STEPS) if step % 4])
    slow = failpoints.at_point(out, rf"fsync .*/\.staging-step-{step:08d}.*", lambda _: time.sleep(60))
    victim = bench.train(config, failpoints.on_call(ENGINE_STEP, signalling(step, TERM)), slow)
    end_s = time.monotonic() + 30
    while len(victim.fired) < 2 and victim.ended() is None and time.monotonic() < end_s:
        time.sleep(0.005)
    time.sleep(bench.rng.uniform(0, 0.2))
    victim.signal(KILL)
    require(victim, KILLED)
    if len(victim.fired) < 2:
        raise Unfired("the save did not begin")
    bench.kept(config)
    return bench.ends_alike(config)


def while_copying(bench: Bench) -> str:
    """A save copies the weights so slowly that the next update would overtake it; then SIGKILL, and on from there."""
    config, out = bench.config(), Path(bench.config().out)

    def starve(number: int, journal: Journal) -> None:
        if number == 2:  # of the first save; one tensor is copied already
            journal.fire("slow copy")
            time.sleep(bench.rng.uniform(0.2, 0.6))

    def kill(number: int, _journal: Journal) -> None:
        if number >= 6 and saved_steps(out):
            os.kill(os.getpid(), KILL)

    bench.train_dies(
        config,
        failpoints.on_call("sft.train.checkpoint.async_writer:replace", starve),
        failpoints.on_call(ENGINE_STEP, kill),
    )
    return bench.ends_alike(config)


def crashes(bench: Bench) -> str:
    """An exception where nobody expects one: in the loop, the loader or the metrics; the trace is kept."""
    target = ("sft.data.batches.batch:join", ENGINE_STEP, "sft.train.monitor.metrics:Tracker.log")[bench.n % 3]
    call = bench.rng.randint(2, NUM_STEPS)

    def crash(number: int, journal: Journal) -> None:
        if number == call:
            journal.fire(target)
            raise LookupError("a bug that was planted")

    config = bench.config()
    says(bench.train_dies(config, failpoints.on_call(target, crash), code=1), "Traceback", "a bug that was planted")
    return bench.ends_alike(config)


def dies_natively(bench: Bench) -> str:
    """Segmentation fault or abort in the middle of a step."""
    call, is_abort = bench.rng.randint(5, NUM_STEPS), bench.n % 2

    def die(number: int, journal: Journal) -> None:
        if number == call:
            journal.fire("abort" if is_abort else "segmentation fault")
            os.abort() if is_abort else ctypes.string_at(0)

    config = bench.config(precision=("fp16", "bf16", "fp32")[bench.n % 3])
    bench.train_dies(
        config, failpoints.on_call(ENGINE_STEP, die), code=-(signal.SIGABRT if is_abort else signal.SIGSEGV)
    )
    return bench.ends_alike(config)


def holds_the_interpreter(bench: Bench) -> str:
    """A library call that never returns and lets no other thread run: the process leaves with its stacks."""
    config, call = bench.config(hang__timeout_s=1.0, hang__first_step_timeout_s=30.0), bench.rng.randint(4, NUM_STEPS)

    def hang(number: int, journal: Journal) -> None:
        if number == call:
            journal.fire("interpreter held")
            ctypes.PyDLL(None).sleep(600)

    victim = bench.train_dies(config, failpoints.on_call(ENGINE_STEP, hang), code=71)
    stacks = (Path(config.out) / "stacks" / "rank-00000.txt").read_text()
    if "in hang" not in stacks:
        raise Wrong(f"no stack of what held it: {stacks[-400:]} {victim.messages[-400:]}")
    return bench.ends_alike(config)


DELETION = r"unlink checkpoints/(\.trash-)?step-.*/.*|rmdir checkpoints/\.trash-.*"


def while_retiring(bench: Bench) -> str:
    """SIGKILL in the middle of deleting an old checkpoint."""
    config = bench.config(checkpoint__every_steps=2, checkpoint__keep_last=2)
    out = Path(config.out)
    pattern = r"rename checkpoints/step-.*" if bench.n % 4 == 3 else DELETION
    trip = failpoints.at_point(out, pattern, failpoints.send(KILL), visit=1 + bench.n % (4 if bench.n % 4 == 3 else 12))
    bench.train_dies(config, trip)
    if len([step for step in saved_steps(out) if is_whole(checkpoint(out, step))]) < 2:
        raise Lost(f"only {saved_steps(out)} are left")
    return bench.ends_alike(config)


# ------------------------------------------------------------------------------------------------ beside training


def while_building(bench: Bench) -> str:
    """SIGKILL at a trip point or a random time of a build; the next one ends with the same bytes."""
    folder = bench.folder / "build"
    folder.mkdir()
    words = ["build", *bench.material.build_settings, f"out={folder / 'shards'}"]
    points = bench.material.build_points
    if bench.n % 4:
        point = points[(bench.n * 7919) % len(points)]
        visit = 1 + bench.rng.randrange(points.count(point))
        trip = failpoints.at_point(folder, failpoints.exactly(point), failpoints.send(KILL), visit=visit)
        require(bench.command(*words, hooks=(trip,)), KILLED)
    else:
        _kill_command(bench, words, folder)
    return _repeat(bench, words, folder / "shards", content(bench.material.built))


def while_exporting(bench: Bench) -> str:
    """SIGKILL at a random time of an export or an evaluation; repeated, it ends with the same bytes."""
    folder, material = bench.folder / "after", bench.material
    folder.mkdir()
    if bench.n % 2:
        out = folder / "eval.json"
        _kill_command(bench, material.eval_words(out), folder)
        if out.exists() and out.read_bytes() != material.evaluated.read_bytes():
            raise Wrong("half a result stands under the final name")
        return _repeat(bench, material.eval_words(out), out, {"": material.evaluated.read_bytes()})
    out, wanted = folder / material.exported.name, content(material.exported)
    words = ["export", str(material.trained), str(out)]
    _kill_command(bench, words, folder)
    if out.exists() and content(out) != wanted:
        raise Wrong("half a folder stands under the final name")
    return _repeat(bench, words, out, wanted)


def _kill_command(bench: Bench, words: list[str], folder: Path) -> None:
    longest_s = 0.5
    while not dies_after(bench.command(*words), bench.rng.uniform(0, longest_s)):
        shutil.rmtree(folder)
        folder.mkdir()
        longest_s /= 2


def _repeat(bench: Bench, words: list[str], out: Path, wanted: dict[str, bytes]) -> str:
    if not (words[0] == "export" and out.exists()):  # an export that was published is whole and never overwritten
        victim = bench.command(*words)
        if code := victim.wait():
            raise Wrong(f"the second one ended with {code}: {victim.messages[-600:]}")
    found = content(out) if out.is_dir() else {"": out.read_bytes()}
    if found != wanted:
        names = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise Wrong(f"other bytes than undisturbed: {names[:5]}")
    return "S"


def signalling(call: int, *numbers: signal.Signals) -> Callable[[int, Journal], Any]:
    """An act on the call of this number: send the signals to the own process."""

    def act(number: int, journal: Journal) -> None:
        if number == call:
            journal.fire([number.name for number in numbers])
            failpoints.send(*numbers)(Path())

    return act
