"""Near-duplicates: the order rule, exact similarity, and bounded work on skewed data."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.data.dedup import near_duplicates as module
from sft.data.dedup.minhash import NO_BAND, NUM_BANDS, Shingles, shingles, signature
from sft.data.dedup.near_duplicates import MAX_COMPARED, MAX_FOUND_PER_BAND, NearDuplicate, near_duplicates

NEVER = float("nan")


@dataclass
class Corpus:
    """Conversations as band values and shingle sets, which counts what is asked of it."""

    bands: np.ndarray
    sets: Sequence[set[int]]
    made: Counter[int] = field(default_factory=Counter)
    num_compared: int = 0

    def shingles(self, number: int) -> Shingles:
        corpus = self

        class Counting(Shingles):
            def similarity(self, other: Shingles) -> float:
                corpus.num_compared += 1
                return Shingles.similarity(self, other)

        self.made[number] += 1
        hashes = np.array(sorted(self.sets[number]), np.uint64)
        return Counting(hashes, hashes)

    def search(self, thresholds: Any = 0.8, alive: Any = True) -> list[NearDuplicate]:
        count = len(self.bands)
        return near_duplicates(
            count,
            lambda band: np.ascontiguousarray(self.bands[:, band]),
            np.broadcast_to(np.asarray(thresholds, np.float32), count),
            self.shingles,
            np.broadcast_to(np.asarray(alive, bool), count),
        )


def in_one_bucket(sets: Sequence[set[int]]) -> Corpus:
    return Corpus(np.full((len(sets), NUM_BANDS), 7, np.uint64), sets)


def search_texts(texts: Sequence[str], threshold: float = 0.8) -> list[NearDuplicate]:
    bands = np.array([signature(["", text]) for text in texts])
    return near_duplicates(
        len(texts),
        lambda band: bands[:, band],
        np.full(len(texts), threshold, np.float32),
        lambda number: shingles(["", texts[number]]),
        np.ones(len(texts), bool),
    )


def planted(num_edits: int, count: int = 200) -> list[str]:
    """Texts of 180 shingles, then each again with single words replaced, each of which touches five shingles."""
    originals = [[f"p{number}w{place}" for place in range(184)] for number in range(count)]
    edits = [original.copy() for original in originals]
    for number, words in enumerate(edits):
        for edit in range(num_edits):
            words[10 + 20 * edit + number % 10] = f"edit{edit}"
    return [" ".join(words) for words in originals + edits]


def pairs(found: list[NearDuplicate]) -> list[tuple[int, int]]:
    return [(one.conversation, one.twin) for one in found]


@pytest.mark.parametrize(("num_edits", "similarity", "least"), [(4, 0.8, 196), (2, 17 / 19, 199)])
def test_planted_edits_are_found_and_named_with_their_original(num_edits: int, similarity: float, least: int) -> None:
    found = search_texts(planted(num_edits))
    assert least <= len(found) <= 200
    assert all(one.conversation == one.twin + 200 for one in found)
    assert {one.similarity for one in found} == {similarity}


def test_nothing_below_the_threshold_is_dropped_although_bands_are_shared() -> None:
    texts = planted(5)
    shared = [np.any(signature(["", texts[i]]) == signature(["", texts[i + 200]])) for i in range(200)]
    assert sum(shared) > 180
    assert search_texts(texts) == []


@given(data=st.data())
@settings(max_examples=120)
def test_the_order_rule_holds_for_any_input(data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 12))
    each = {"min_size": count, "max_size": count}
    bands = np.full((count, NUM_BANDS), NO_BAND)
    for band in (0, 1, 19):
        bands[:, band] = data.draw(st.lists(st.integers(0, 3), **each))
    sets = data.draw(st.lists(st.sets(st.integers(0, 5)), **each))
    thresholds = data.draw(st.lists(st.sampled_from([0.5, 0.6, 0.8, 1.0, NEVER]), **each))
    alive = data.draw(st.lists(st.booleans(), **each))
    expected, kept = [], []
    for number in range(count):
        like = [other for other in kept if np.any((bands[number] == bands[other]) & (bands[number] != NO_BAND))]
        shares = [(other, len(sets[number] & sets[other]) / max(1, len(sets[number] | sets[other]))) for other in like]
        twins = [(other, share) for other, share in shares if share >= thresholds[number]]
        if alive[number] and twins:
            expected.append(NearDuplicate(number, *twins[0]))
        elif alive[number]:
            kept.append(number)
    assert Corpus(bands, sets).search(thresholds, alive) == expected


@pytest.mark.parametrize(
    ("sets", "thresholds", "alive", "expected"),
    [
        pytest.param([{1}, {1}, {1}], 0.8, True, [(1, 0), (2, 0)], id="the first of a group stays"),
        pytest.param([{1, 2}, {1, 2, 3}, {1, 2, 3, 4}], 0.6, True, [(1, 0)], id="a dropped one drops nobody"),
        pytest.param([{1, 2, 3, 4}, {1, 2, 3, 5}, {1, 2, 3}], 0.7, True, [(2, 0)], id="the earliest is the twin"),
        pytest.param([{1, 2, 3, 4, 5}, {1, 2, 3, 4}], 0.8, True, [(1, 0)], id="exactly at the threshold"),
        pytest.param([{1}, {1}, {1}], 0.8, [False, True, True], [(2, 1)], id="a dead one is no twin"),
        pytest.param([{1}, {1}, {1}], 0.8, [True, False, True], [(2, 0)], id="a dead one is not dropped again"),
        pytest.param([{1}, {1}, {1}], [0.8, NEVER, 0.8], True, [(2, 0)], id="a spared one stays"),
        pytest.param([{1}, {1}], [NEVER, 0.8], True, [(1, 0)], id="a spared one is a twin"),
        pytest.param([{1, 2}, {1, 2, 3}, {1, 2, 4}], [0.5, 0.7, 0.6], True, [(2, 0)], id="each by its own threshold"),
        pytest.param([set(), set()], 0.5, True, [], id="nothing resembles nothing"),
    ],
)
def test_who_is_dropped(sets: list[set[int]], thresholds: Any, alive: Any, expected: list[tuple[int, int]]) -> None:
    assert pairs(in_one_bucket(sets).search(thresholds, alive)) == expected


@pytest.mark.parametrize("count", [0, 1])
def test_a_build_too_small_for_pairs_has_none(count: int) -> None:
    assert in_one_bucket([{1}] * count).search() == []


def test_what_shares_no_band_is_never_read() -> None:
    bands = np.arange(1, 50 * NUM_BANDS + 1, dtype=np.uint64).reshape(50, NUM_BANDS)
    corpus = Corpus(bands, [{1}] * 50)
    assert corpus.search() == []
    assert not corpus.made


def test_equal_values_of_two_bands_are_no_shared_band() -> None:
    bands = np.arange(1, 2 * NUM_BANDS + 1, dtype=np.uint64).reshape(2, NUM_BANDS)
    bands[1] = np.roll(bands[0], 1)
    assert Corpus(bands, [{1}] * 2).search() == []


@pytest.mark.parametrize(("last", "num_read"), [(NEVER, 0), (0.8, MAX_COMPARED + 1)])
def test_conversations_that_may_not_be_dropped_are_read_only_as_twins(last: float, num_read: int) -> None:
    corpus = in_one_bucket([{number} for number in range(50)])
    assert corpus.search([NEVER] * 49 + [last]) == []
    assert len(corpus.made) == num_read


def test_thousands_of_copies_in_one_bucket_are_each_read_once() -> None:
    corpus = in_one_bucket([{1, 2, 3, 4, 5, 6, 7, 8, 9, 10 + number} for number in range(3000)])
    assert len(corpus.search()) == 2999
    assert corpus.num_compared == 2999
    assert set(corpus.made.values()) == {1}


def test_unlike_texts_in_one_bucket_cost_a_bounded_number_of_comparisons() -> None:
    corpus = in_one_bucket([{number} for number in range(500)])
    assert corpus.search() == []
    assert 400 * MAX_COMPARED <= corpus.num_compared <= 500 * MAX_COMPARED
    assert set(corpus.made.values()) == {1}


@pytest.mark.parametrize(
    ("distance", "is_found"),
    [(1, True), (MAX_COMPARED, True), (MAX_COMPARED + 1, False), (MAX_FOUND_PER_BAND + 1, False)],
)
def test_in_a_crowded_bucket_the_latest_are_compared(distance: int, is_found: bool) -> None:
    sets = [{number} for number in range(200)]
    sets[150] = sets[150 - distance]
    assert pairs(in_one_bucket(sets).search()) == ([(150, 150 - distance)] if is_found else [])


@pytest.mark.parametrize("distance", [MAX_COMPARED + 1, MAX_FOUND_PER_BAND + 1])
def test_a_twin_far_back_is_found_if_it_shares_a_band_that_others_do_not(distance: int) -> None:
    sets = [{number} for number in range(200)]
    sets[150] = sets[150 - distance]
    corpus = Corpus(np.full((200, NUM_BANDS), NO_BAND), sets)
    corpus.bands[:, :2] = 7
    corpus.bands[[150, 150 - distance], 2:6] = 9
    assert pairs(corpus.search()) == [(150, 150 - distance)]


def test_a_small_cache_changes_nothing_but_the_number_of_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [{number % 40, 1000 + number % 40} for number in range(120)]
    roomy, tight = in_one_bucket(sets), in_one_bucket(sets)
    expected = roomy.search()
    monkeypatch.setattr(module, "_CACHED_BYTES", 64)
    assert tight.search() == expected
    assert max(roomy.made.values()) == 1 < max(tight.made.values())


def test_every_band_is_read_twice_at_most() -> None:
    reads = Counter[int]()

    def bands(band: int) -> np.ndarray:
        reads[band] += 1
        return np.full(3, 7, np.uint64)

    corpus = in_one_bucket([{1}] * 3)
    near_duplicates(3, bands, np.full(3, 0.8, np.float32), corpus.shingles, np.ones(3, bool))
    assert set(reads) == set(range(NUM_BANDS))
    assert max(reads.values()) <= 2


def test_the_same_are_dropped_in_every_process() -> None:
    code = (
        "import numpy as np\nfrom sft.data.dedup.minhash import shingles, signature\n"
        "from sft.data.dedup.near_duplicates import near_duplicates\n"
        "texts = [['', ' '.join(f'w{(n // 3) * 100 + k}' for k in range(60)) + f' {n}'] for n in range(60)]\n"
        "bands = np.array([signature(text) for text in texts])\n"
        "print(near_duplicates(60, lambda b: bands[:, b], np.full(60, 0.8, np.float32), lambda i: shingles(texts[i]),"
        " np.ones(60, bool)))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert runs[0].count("NearDuplicate(") == 40
