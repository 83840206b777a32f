"""Faults of one process among several that train together."""

import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sft.train.engine.fsdp import local
from tests.faults import failpoints
from tests.faults.fixtures import NUM_STEPS
from tests.faults.injectors import numbers
from tests.faults.injectors.damage import files, flip
from tests.faults.injectors.kills import ENGINE_STEP, MOMENTS, TERM, signalling
from tests.faults.oracle import (
    FinalState,
    Slow,
    Unfired,
    Wrong,
    checkpoint,
    is_whole,
    last_step,
    saved_steps,
    step_records,
)
from tests.faults.process import Hook, Journal, Victim
from tests.faults.sandbox import KILLED, Bench, refused, says

PAIR = 2
PATIENCE_S = 4.0
"""How long the processes of these runs wait for each other."""
LEFT_S = 30.0
"""By when a process that lost another one must have left."""


def killed_while_saving(bench: Bench) -> str:
    """SIGKILL of one process during a save: the other leaves with 71, and a restart goes on."""
    config, out = bench.config(distributed__timeout_s=PATIENCE_S), Path(bench.config().out)
    pattern = SAVE_POINTS[bench.n % len(SAVE_POINTS)]
    rank = int("00002-of" in pattern)
    trip = failpoints.at_point(
        out, pattern, failpoints.cut_and_kill(bench.rng.random()), visit=1 + bench.n // len(SAVE_POINTS) % 2
    )
    victims = bench.train_together(config, *((trip,) if rank == number else () for number in range(PAIR)))
    _require_left(victims, rank, KILLED)
    bench.kept(config)
    return bench.ends_alike(config, size=PAIR)


SAVE_POINTS = (
    r"fsync checkpoints/\.staging-step-\d+/weights-00002-of-00002.safetensors",
    r"rename checkpoints/\.staging-step-\d+",
    r"fsync checkpoints/\.staging-step-\d+/optimizer-00002-of-00002.safetensors",
    r"fsync checkpoints/\.staging-step-\d+/weights-00001-of-00002.safetensors",
    r"mkdir checkpoints/\.staging-step-\d+",
    r"fsync checkpoints/\.staging-step-\d+/\.manifest.json.part",
    r"fsync checkpoints",
)


def killed(bench: Bench) -> str:
    """SIGKILL of one process at a random time: the other leaves with 71, and a restart goes on."""
    config, rank = bench.config(distributed__timeout_s=PATIENCE_S), bench.n % PAIR
    longest_s = bench.material.pair.run_s
    while True:
        victims = bench.train_together(config, (), ())
        time.sleep(bench.rng.uniform(0, longest_s))
        victims[rank].signal(signal.SIGKILL)
        if victims[rank].wait() == KILLED:
            break
        shutil.rmtree(config.out, ignore_errors=True)
        longest_s /= 2
    if victims[1 - rank].wait(LEFT_S) not in (0, 71):
        raise Wrong(f"the other left with {victims[1 - rank].wait()}: {victims[1 - rank].messages[-600:]}")
    bench.kept(config)
    return bench.ends_alike(config, size=PAIR)


def one_is_asked(bench: Bench) -> str:
    """SIGTERM to one process only: all stop after the same step."""
    rank, moment = bench.n % PAIR, list(MOMENTS)[bench.n // 2 % len(MOMENTS)]
    config = bench.config(distributed__timeout_s=PATIENCE_S)
    # With two processes, each computes one batch per step.
    hook = failpoints.on_call(MOMENTS[moment], signalling(bench.rng.randint(1, NUM_STEPS - 1), TERM))
    victims = bench.train_together(config, *((hook,) if rank == number else () for number in range(PAIR)))
    codes = [victim.wait() for victim in victims]
    if not victims[rank].fired:
        raise Unfired(f"codes {codes}")
    if codes != [75, 75]:
        raise Wrong(f"exit codes {codes}: {victims[rank].messages[-400:]} {victims[1 - rank].messages[-400:]}")
    step = last_step(Path(config.out))
    for victim in victims:
        says(victim, rf"received SIGTERM: stopped after step {step} of 12, which is saved")
    if not is_whole(checkpoint(Path(config.out), step)):
        raise Wrong(f"step {step} was not saved")
    return bench.ends_alike(config, size=PAIR)


def file_of_one_damaged(bench: Bench) -> str:
    """The file of one process is missing, or one of its bits is flipped."""
    config = bench.finished(PAIR)
    last = checkpoint(Path(config.out), NUM_STEPS)
    path = bench.rng.choice([path for path in files(last) if "-of-00002" in path.name])
    if bench.n % 2:
        path.unlink()
    else:
        flip(path, bench.rng.randrange(8 * path.stat().st_size))
    ending = bench.ends_alike(config, size=PAIR)
    if not (last.parent / f".bad-{last.name}").is_dir():
        raise Wrong("the damaged checkpoint was used")
    return ending


def seen_by_one(bench: Bench) -> str:
    """One process never sees the newest checkpoint: all refuse, and nobody starts from another step."""
    config = bench.finished(PAIR, distributed__timeout_s=20.0)
    shutil.rmtree(checkpoint(Path(config.out), NUM_STEPS))
    victims = bench.train_together(config, (), (hidden(checkpoint(Path(config.out), 8), 600.0),))
    endings = {refused(victim, 74, "another process of the run sees it") for victim in victims}
    if not victims[1].fired:
        raise Unfired("nothing was hidden")
    bench.ends_alike(config, size=PAIR)
    return endings.pop()


def seen_late(bench: Bench) -> str:
    """One process sees the newest checkpoint only after a while."""
    config = bench.finished(PAIR, distributed__timeout_s=20.0)
    shutil.rmtree(checkpoint(Path(config.out), NUM_STEPS))
    victims = bench.train_together(config, (), (hidden(checkpoint(Path(config.out), 8), bench.rng.uniform(0.3, 1.5)),))
    if codes := [code for code in (victim.wait() for victim in victims) if code]:
        raise Wrong(f"exit codes {codes}: {victims[1].messages[-600:]}")
    if not victims[1].fired:
        raise Unfired("nothing was hidden")
    bench.is_alike(config, PAIR)
    return "S"


def hidden(folder: Path, delay_s: float) -> Hook:
    """For a while, this process does not see a folder; it does not wait for a minute, either."""

    def install(journal: Journal) -> None:
        import sft.train.inputs as inputs

        inputs.LONGEST_DELAY_S = min(3.0, delay_s + 2.0)
        end_s = time.monotonic() + delay_s

        def is_file(original: Any, path: Path) -> bool:
            if path.is_relative_to(folder) and time.monotonic() < end_s:
                journal.fire("hidden")
                return False
            return bool(original(path))

        failpoints.replace("pathlib:Path.is_file", is_file)

    return install


def other_size(bench: Bench) -> str:
    """The run is stopped, and goes on with another number of processes."""
    before, after = ((1, 2), (2, 1), (2, 4), (4, 2))[bench.n % 4]
    config, step = bench.config(distributed__timeout_s=20.0), bench.rng.randint(2, NUM_STEPS - 2)
    ask = failpoints.on_call(ENGINE_STEP, signalling(step, TERM))
    victims = bench.train_together(config, *((ask,) if rank == 0 else () for rank in range(before)))
    if any(victim.wait() != 75 for victim in victims) or saved_steps(Path(config.out))[-1] != step:
        raise Wrong(f"exit codes {[victim.wait() for victim in victims]}, saved {saved_steps(Path(config.out))}")
    victims = bench.train_together(config, *[()] * after)
    if any(victim.wait() for victim in victims):
        raise Wrong(f"exit codes {[victim.wait() for victim in victims]}: {victims[0].messages[-600:]}")
    says(victims[0], f"going on after step {step} of 12")
    wanted = bench.material.straight("fp32").state
    if gaps := wanted.gaps(FinalState.of(Path(config.out), NUM_STEPS)):
        raise Wrong("; ".join(gaps))
    bench.verifies(config)
    return "S"


def spoiled_on_one(bench: Bench) -> str:
    """NaN or inf on one process: all skip that step, no weight changes on any."""
    step, rank = bench.rng.randint(2, NUM_STEPS - 1), bench.n % PAIR
    config, bad = bench.config(distributed__timeout_s=20.0), bench.rng.choice(numbers.BAD_NUMBERS)

    def spoil(number: int, journal: Journal) -> Any:
        if number != step:
            return None
        journal.fire(f"forward {bad}")
        return lambda hidden: hidden * bad

    hook = failpoints.on_call(numbers.MODEL, spoil, after=True)
    hooks = [(watched_shares, *((hook,) if rank == number else ())) for number in range(PAIR)]
    victims = bench.train_together(config, *hooks)
    if any(victim.wait() for victim in victims):
        raise Wrong(f"exit codes {[victim.wait() for victim in victims]}: {victims[rank].messages[-600:]}")
    if not victims[rank].fired:
        raise Unfired("nothing was spoilt")
    for number, victim in enumerate(victims):
        kept = [at for at, same in victim.journal.read("weights") if same]
        if kept != [step]:
            raise Wrong(f"on process {number} the steps {kept} left the weights alone, expected {step}")
    if [record["step"] for record in step_records(Path(config.out)) if record["skipped"]] != [step]:
        raise Wrong("metrics do not call the step skipped")
    return "S"


def watched_shares(journal: Journal) -> None:
    """A hook: tell of every step whether it changed a weight of this process."""
    num_steps = 0

    def watching(original: Any, engine: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal num_steps
        num_steps += 1
        before = [local(value.detach()).clone() for value in engine.model.parameters()]
        result = original(engine, *arguments, **named)
        same = all(torch.equal(a, local(b.detach())) for a, b in zip(before, engine.model.parameters(), strict=True))
        journal.write("weights", [num_steps, same])
        return result

    failpoints.replace(ENGINE_STEP, watching)


def stopped(bench: Bench) -> str:
    """SIGSTOP: the other process does not wait for ever."""
    return _leaves(bench, lambda: os.kill(os.getpid(), signal.SIGSTOP), None)


def hangs(bench: Bench) -> str:
    """One process hangs where no other waits for it yet: all leave with their stacks before they give up waiting."""
    config = bench.config(distributed__timeout_s=300.0, hang__timeout_s=1.0, hang__first_step_timeout_s=30.0)
    call = bench.rng.randint(4, NUM_STEPS - 1)

    def hang(number: int, journal: Journal) -> None:
        if number == call:
            journal.fire("hang")
            _hang()

    victims = bench.train_together(
        config, (), (failpoints.on_call(("sft.data.batches.batch:join", ENGINE_STEP)[bench.n % 2], hang),)
    )
    codes = [victim.wait(LEFT_S) for victim in victims]
    if not victims[1].fired:
        raise Unfired(f"codes {codes}")
    if codes != [71, 71]:
        raise Wrong(f"exit codes {codes}: {victims[0].messages[-400:]} {victims[1].messages[-400:]}")
    stacks = [(Path(config.out) / "stacks" / f"rank-{rank:05d}.txt").read_text() for rank in range(PAIR)]
    if "in _hang" not in stacks[1] or "in _hang" in stacks[0]:
        raise Wrong(f"the stacks do not show who hangs: {stacks[1][-400:]}")
    bench.kept(config)
    bench.ends_alike(config, size=PAIR)
    return "R 71"


def slow(bench: Bench) -> str:
    """One process needs much longer for its data than the other: it is named, and the run goes on."""
    config = bench.config(distributed__timeout_s=60.0)

    def linger(number: int, journal: Journal) -> None:
        if number == 1:
            journal.fire("slow")
        time.sleep(0.5)

    def judge_soon(_journal: Journal) -> None:
        failpoints.replace(
            "sft.train.monitor.stragglers:SlowRanks", lambda original, hosts: original(hosts, window_steps=2)
        )

    slow_one = bench.n % PAIR
    hooks = [
        (judge_soon, *((failpoints.on_call("sft.data.batches.batch:join", linger),) if rank == slow_one else ()))
        for rank in range(PAIR)
    ]
    victims = bench.train_together(config, *hooks)
    if codes := [code for code in (victim.wait() for victim in victims) if code]:
        raise Wrong(f"exit codes {codes}: {victims[0].messages[-600:]}")
    says(victims[0], rf"rank {slow_one} on .* takes [0-9.]+ times as long")
    bench.is_alike(config, PAIR)
    return "S"


def gone(bench: Bench) -> str:
    """One process ends early with code 0, or leaves out a collective."""
    if bench.n % 2 == 0:
        return _leaves(bench, lambda: os._exit(0), 0)
    config, step = bench.config(distributed__timeout_s=PATIENCE_S), bench.rng.randint(2, NUM_STEPS - 1)

    def skip(journal: Journal) -> None:
        def exchanging(original: Any, run: Any) -> None:
            if run.step == step:
                journal.fire("left out")
                return
            original(run)

        failpoints.replace("sft.train.loop:exchange_status", exchanging)

    victims = bench.train_together(config, (), (skip,))
    codes = [victim.wait(LEFT_S) for victim in victims]
    if not victims[1].fired:
        raise Unfired(str(codes))
    # The library of the connection aborts a process that gets other numbers than it waits for.
    if codes[0] != 71 or codes[1] not in (71, -signal.SIGABRT):
        raise Wrong(f"exit codes {codes}: {victims[0].messages[-400:]} {victims[1].messages[-400:]}")
    bench.kept(config)
    bench.ends_alike(config, size=PAIR)
    return "R 71"


def without_data(bench: Bench) -> str:
    """The loader of one process finds no data, or hangs."""

    def fail() -> None:
        from sft.errors import DataError

        raise DataError("the shard is gone", on="shards")

    return (
        _leaves(bench, fail, 65, at="sft.data.batches.batch:join") if bench.n % 2 == 0 else _leaves(bench, _hang, None)
    )


def nobody_meets(bench: Bench) -> str:
    """At the meeting place: the port is taken by another program, a process never comes, or numbers contradict."""
    config = bench.config(distributed__timeout_s=PATIENCE_S)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if bench.n % 3:
            server.close()
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": "0"}
        numbers_of = {0: ("0", "2"), 1: ("0", "3"), 2: ("2", "2")}[bench.n % 3]
        environ = {**place, "RANK": numbers_of[0], "WORLD_SIZE": numbers_of[1]}
        victim = bench.train(config, environ=environ)
        if bench.n % 3 == 2:
            return refused(victim, 78, "RANK=2, WORLD_SIZE=2")
        return refused(victim, 71, f"127.0.0.1:{port}")


def _leaves(bench: Bench, fault: Callable[[], Any], code: int | None, at: str = ENGINE_STEP) -> str:
    """Let a fault hit one process: the other leaves with 71 in time, and a restart goes on."""
    config, call = bench.config(distributed__timeout_s=PATIENCE_S), bench.rng.randint(2, NUM_STEPS - 1)

    def hit(number: int, journal: Journal) -> None:
        if number == call:
            journal.fire("hit")
            fault()

    victims = bench.train_together(config, (), (failpoints.on_call(at, hit),))
    _require_left(victims, 1, code)
    bench.kept(config)
    bench.ends_alike(config, size=PAIR)
    return "R 71"


def _require_left(victims: list[Victim], hit: int, code: int | None) -> None:
    """Make sure that the process that was hit ends with its code, if it can, and the other one with 71."""
    other = victims[1 - hit]
    try:
        found = other.wait(LEFT_S)
    except Slow as slow:
        raise Slow(f"the other process: {slow}") from None
    if code is None:
        victims[hit].signal(signal.SIGKILL)
    ended = victims[hit].wait()
    if not victims[hit].fired:
        raise Unfired(f"codes {ended} and {found}: {other.messages[-300:]}")
    if code is not None and ended != code:
        raise Wrong(f"the process that was hit ended with {ended}: {victims[hit].messages[-600:]}")
    if found != 71:
        raise Wrong(f"the other one ended with {found}, expected 71: {other.messages[-600:]}")
    if "Traceback" in other.messages:
        raise Wrong(f"the other one left with a traceback: {other.messages[-600:]}")


def _hang() -> None:
    time.sleep(600)
