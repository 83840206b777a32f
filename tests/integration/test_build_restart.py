"""A build that was killed, whatever of it and whenever, goes on where it was and ends with the same bytes."""

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft.data.build import build as build_module
from sft.data.build.chunk import ChunkFile
from tests.integration.many_chunks import (
    BETA,
    NUM_CHUNKS,
    ROOT,
    ROWS_PER_FILE,
    Bench,
    alpha,
    content,
    finished,
    leftovers,
    lines,
    rows,
    rows_of,
    work,
    write_bench,
)

DYING_BUILD = "tests.integration.dying_build"


@pytest.fixture
def bench(write_mixture: Callable[..., Any]) -> Bench:
    return write_bench(write_mixture)


# ------------------------------------------------------------------------------------------------ killed while it works

VICTIMS = {
    "the only process": ("itself", "workers=1"),
    "the build, not its workers": ("parent", "workers=2"),
    "all processes": ("all", "workers=2"),
}


@pytest.mark.parametrize(("victim", "workers"), VICTIMS.values(), ids=VICTIMS)
def test_a_killed_build_goes_on_with_what_is_still_to_do(victim: str, workers: str, bench: Bench) -> None:
    wanted, out = bench.undisturbed(), bench.out("killed")
    choose = random.Random(victim)
    earlier: dict[str, tuple[int, int]] = {}
    done: set[str] = set()
    kills, processes = 0, []
    # With two workers, a chunk is begun when all before it are finished, but for one.
    for first, last, num_finished in ((2, 3, 1), (9, 11, 8)):
        row = f"alpha{choose.randint(first, last):02}.{choose.randint(1, ROWS_PER_FILE - 3)}"
        log = bench.plan(f"kill {kills}", die_at=row, victim=victim)
        processes.append(bench.start(out, workers))
        kills += processes[-1].wait(timeout=60) == -9
        assert rows(log)[row] == 1
        assert not rows(log).keys() & done
        now = finished(out)
        assert earlier.items() <= now.items()
        assert len(now) >= num_finished
        earlier, done = now, rows_of(out)
    assert kills == 2
    # Its workers may be alive still: nobody waits for them.
    log = bench.plan("last")
    assert bench.finish(out, workers)[0] == 0
    assert not rows(log).keys() & done
    assert content(out) == wanted
    assert leftovers(out) == set()
    for process in processes:
        process.communicate(timeout=20)  # fails if a worker outlives its build


def test_a_killed_worker_ends_the_build_with_a_message_and_the_next_one_finishes(bench: Bench) -> None:
    wanted, out = bench.undisturbed(), bench.out("killed")
    row = "alpha08.30"
    log = bench.plan("kill", die_at=row)
    code, messages = bench.finish(out, "workers=2")
    assert rows(log)[row] == 1
    assert code == 71
    assert "a worker process died" in messages
    assert "workers=1" in messages
    assert "Traceback" not in messages
    assert not out.exists()
    done = rows_of(out)
    assert len(finished(out)) >= 4
    log = bench.plan("last")
    assert bench.finish(out, "workers=2")[0] == 0
    assert rows(log)[row] == 1
    assert not rows(log).keys() & done
    assert content(out) == wanted
    assert leftovers(out) == set()


def test_killed_before_any_step_on_disk_a_build_can_be_repeated(bench: Bench) -> None:
    """Every single step: before the first chunk, in the middle of one, while it publishes, and while it tidies up."""
    for path in bench.sources_dir.glob("alpha*.jsonl"):
        path.unlink()
    (bench.sources_dir / "alpha.jsonl").write_text(lines(dict(list(alpha(0).items())[-20:])))
    (bench.sources_dir / "beta.jsonl").write_text(lines(dict(list(BETA.items())[:20])))
    bench.plan("dying")
    folder = bench.out("dying")
    command = [sys.executable, "-m", DYING_BUILD, str(bench.raw.mixture), str(folder), *bench.settings(folder)[:-1]]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert child.returncode == 0, child.stderr
    deaths = [json.loads(line) for line in child.stdout.splitlines()]
    assert len(deaths) > 20
    assert {death["step"].split()[0] for death in deaths} == {"read", "write", "mkdir", "rename", "remove", "rmdir"}
    assert {death["died"] for death in deaths} == {-9}
    assert {death["published"] for death in deaths} == {False, True}
    assert {death["ended"] for death in deaths} == {0}
    wanted = content(folder / "counted" / "shards")
    for death in deaths:
        assert content(folder / str(death["number"]) / "shards") == wanted, death
    left = {death["step"]: leftovers(folder / str(death["number"]) / "shards") for death in deaths}
    assert {step: names for step, names in left.items() if names} == {}


# ------------------------------------------------------------------------------------------------ what is used again


class StoppedError(Exception):
    """The build was stopped before it published."""


@pytest.fixture
def unpublished(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a build did not publish, though all its chunks are finished."""

    def stop(*_: object) -> None:
        raise StoppedError

    bench.plan("unpublished")
    out = bench.out("unpublished")
    monkeypatch.setattr(build_module, "publish_build", stop)
    with pytest.raises(StoppedError):
        bench.build(out)
    monkeypatch.undo()
    assert len(finished(out)) == NUM_CHUNKS
    return out


def test_a_build_whose_units_are_all_finished_makes_none(bench: Bench, unpublished: Path) -> None:
    log = bench.plan("again")
    found = bench.build(unpublished)
    assert not rows(log)
    assert found == bench.undisturbed()
    assert leftovers(unpublished) == set()


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "a bit of a token": lambda data: flip(data, len(data) // 2),
    "a bit of the hash": lambda data: flip(data, 3),
    "a bit of a rejected row": lambda data: flip(data, len(data) - 5),
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda _: b"",
}


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_unit_and_no_other_is_made_again(
    damage: Callable[[bytes], bytes], bench: Bench, unpublished: Path
) -> None:
    (path,) = (
        path for path in work(unpublished).iterdir() if (u := ChunkFile.open(path)) and u.file == "alpha07.jsonl"
    )
    path.write_bytes(damage(path.read_bytes()))
    log = bench.plan("again")
    found = bench.build(unpublished)
    assert rows(log) == Counter(alpha(7).keys())
    assert found == bench.undisturbed()
    assert leftovers(unpublished) == set()


def test_a_missing_unit_and_no_other_is_made_again(bench: Bench, unpublished: Path) -> None:
    (path,) = (path for path in work(unpublished).iterdir() if path.name.endswith("-2000-50"))
    path.unlink()
    log = bench.plan("again")
    found = bench.build(unpublished)
    assert rows(log) == Counter(list(BETA)[2000:])
    assert found == bench.undisturbed()


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# What changes, and the sources whose chunks are no longer what is wanted.
CHANGES: dict[str, tuple[Callable[[Bench], object], set[str]]] = {
    "a recipe's code": (lambda b: _edit(b.recipes / "beta" / "convert.py", "user's first", "user first"), {"beta"}),
    "a recipe's facts": (lambda b: _edit(b.recipes / "beta" / "recipe.yaml", "shortly", "briefly"), {"beta"}),
    "a raw file": (lambda b: _edit(b.sources_dir / "beta.jsonl", 'answer 100"', 'answer 101"'), {"beta"}),
    "a source's setting": (lambda _: ["sources.beta.min_answer_characters=3"], {"beta"}),
    "the seed": (lambda _: ["seed=3"], {"alpha", "beta"}),
    "the length": (lambda _: ["seq_len=96"], {"alpha", "beta"}),
    "a search for near duplicates": (lambda _: ["sources.beta.near_duplicates=0.9"], {"alpha", "beta"}),
    "nothing of its bytes": (lambda _: ["workers=1"], set()),
}


@pytest.mark.parametrize(("change", "stale"), CHANGES.values(), ids=CHANGES)
def test_units_of_other_inputs_are_never_used(
    change: Callable[[Bench], Any], stale: set[str], bench: Bench, unpublished: Path
) -> None:
    settings = change(bench) or []
    log = bench.plan("again")
    found = bench.build(unpublished, *settings)
    made = {"beta" if row.startswith("beta") else "alpha" for row in rows(log)}
    assert made == stale
    bench.plan("fresh")
    assert found == bench.build(bench.out("fresh"), *settings)
    assert leftovers(unpublished) == set()
