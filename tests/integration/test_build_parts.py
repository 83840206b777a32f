"""Jobs that share the chunks of a build make each of them once, and it is merged to the same bytes."""

from collections.abc import Callable
from typing import Any

import pytest

from sft.data.build.build import Part, build_part
from tests.integration.many_chunks import EVERY_ROW, NUM_CHUNKS, Bench, content, finished, leftovers, rows, write_bench

NUM_PARTS = 3


@pytest.fixture
def bench(write_mixture: Callable[..., Any]) -> Bench:
    return write_bench(write_mixture)


def test_parts_made_at_once_are_merged_to_the_same_bytes(bench: Bench) -> None:
    wanted, out = bench.undisturbed(), bench.out("parts")
    log = bench.plan("parts")
    parts = [bench.start(out, "--part", f"{number}/{NUM_PARTS}") for number in range(1, NUM_PARTS + 1)]
    said = [part.communicate(timeout=60)[0].decode() for part in parts]
    assert [part.returncode for part in parts] == [0] * NUM_PARTS
    counts = [len(range(number, NUM_CHUNKS, NUM_PARTS)) for number in range(NUM_PARTS)]
    for number, text in enumerate(said):
        assert f"part {number + 1}/{NUM_PARTS}: chunks done: {counts[number]};" in text
    # Every chunk was made, each by one part only.
    assert rows(log) == EVERY_ROW
    assert not out.exists()
    before = finished(out)
    assert len(before) == NUM_CHUNKS
    log = bench.plan("merge")
    assert bench.finish(out, "workers=2")[0] == 0
    assert not rows(log)
    assert content(out) == wanted
    assert leftovers(out) == set()


@pytest.mark.parametrize("number", range(1, NUM_PARTS + 1))
def test_a_part_makes_its_own_units_only_and_the_build_the_rest(number: int, bench: Bench) -> None:
    out = bench.out("part")
    config = bench.config(out)
    log = bench.plan("part")
    count = build_part(config, bench.recipes, Part(number, NUM_PARTS))
    made = finished(out)
    assert count == len(made) == len(range(number - 1, NUM_CHUNKS, NUM_PARTS))
    again = bench.plan("again")
    assert build_part(config, bench.recipes, Part(number, NUM_PARTS)) == count
    assert not rows(again)
    assert finished(out) == made
    rest = bench.plan("rest")
    found = bench.build(out)
    assert rows(log) + rows(rest) == EVERY_ROW
    assert found == bench.undisturbed()


def test_parts_of_another_build_are_not_mixed_in(bench: Bench) -> None:
    wanted, out = bench.undisturbed(), bench.out("parts")
    other = bench.plan("other")
    build_part(bench.config(out, "seed=1"), bench.recipes, Part(1, 2))
    mine = bench.plan("mine")
    build_part(bench.config(out), bench.recipes, Part(2, 2))
    assert rows(other)
    assert rows(mine)
    log = bench.plan("merge")
    assert bench.build(out) == wanted
    assert rows(log) == rows(other)
    assert leftovers(out) == set()


def test_a_part_of_a_published_build_makes_nothing(bench: Bench) -> None:
    out = bench.out("done")
    bench.plan("done")
    bench.build(out)
    log = bench.plan("part")
    assert build_part(bench.config(out), bench.recipes, Part(1, 2)) is None
    assert not rows(log)
    assert leftovers(out) == set()
