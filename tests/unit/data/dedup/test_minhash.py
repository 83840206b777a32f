"""Signatures: texts that share most of their phrases share a band, and nothing else decides."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.data.dedup import minhash
from sft.data.dedup.minhash import NO_BAND, NUM_BANDS, Shingles, jaccard, shingles, signature, signatures

NUM_PAIRS = 300
hashes = st.sets(st.integers(0, 30), max_size=15)


def as_array(values: set[int]) -> np.ndarray:
    return np.array(sorted(values), np.uint64)


def pair(name: str, num_edits: int) -> tuple[list[str], list[str]]:
    """An answer of 184 words and one with single words replaced, each of which touches five of the 180 shingles."""
    words = [f"{name}w{place}" for place in range(184)]
    edited = words.copy()
    for edit in range(num_edits):
        edited[10 + 20 * edit] = f"{name}e{edit}"
    return ["", " ".join(words)], ["", " ".join(edited)]


@pytest.mark.parametrize(
    ("num_edits", "similarity", "least", "most"),
    [
        (1, 175 / 185, 1.0, 1.0),
        (2, 17 / 19, 0.99, 1.0),
        (4, 0.8, 0.98, 1.0),
        (6, 5 / 7, 0.87, 0.98),
        (9, 0.6, 0.4, 0.8),
    ],
)
def test_pairs_share_a_band_as_often_as_their_similarity_says(
    num_edits: int, similarity: float, least: float, most: float
) -> None:
    pairs = [pair(f"p{number}", num_edits) for number in range(NUM_PAIRS)]
    share = np.mean([np.any(signature(one) == signature(other)) for one, other in pairs])
    assert shingles(pairs[0][0]).similarity(shingles(pairs[0][1])) == pytest.approx(similarity)
    assert least <= share <= most


def test_texts_with_nothing_in_common_share_no_band() -> None:
    signatures = np.array([signature(pair(f"p{number}", 0)[0]) for number in range(NUM_PAIRS)])
    assert all(len(np.unique(column)) == NUM_PAIRS for column in signatures.T)


@pytest.mark.parametrize(
    "texts",
    [
        ["what is IT?", "It is a Very, very short text!"],
        ["what is it it is a very very short text"],
        ["What is it\n\n", " it...is   a very\tvery", "short text"],
    ],
)
def test_case_punctuation_spacing_and_borders_of_turns_do_not_count(texts: list[str]) -> None:
    expected = signature(["What is it?", "It is a very very short text."])
    np.testing.assert_array_equal(signature(texts), expected)


def test_one_other_word_changes_bands() -> None:
    one, other = signature(["what is it", "a short text"]), signature(["what is it", "a short note"])
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("num_words", [1, 2, 4, 5])
def test_a_text_of_up_to_five_words_is_one_shingle(num_words: int) -> None:
    answer = ["one", "two", "three", "four", "five"][:num_words]
    found = shingles(["a question of more than five words", " ".join(answer)])
    assert len(found.answers) == 1
    assert signature([" ".join(answer)]).all()


@pytest.mark.parametrize("texts", [[], [""], ["", "?!"], ["...", "---"]])
def test_texts_without_words_have_no_band_and_resemble_nothing(texts: list[str]) -> None:
    assert (signature(texts) == NO_BAND).all()
    assert shingles(texts).similarity(shingles(texts)) == 0


def test_a_signature_has_one_number_per_band() -> None:
    found = signature(pair("a", 0)[0])
    assert (found.shape, found.dtype) == ((NUM_BANDS,), np.uint64)


MIXED = [
    [], pair("a", 0)[0], ["one"], ["", "?"], ["one two", "three"], pair("b", 3)[1], ["", "one two three four five"],
    ["one two three four five", "six"], [" ".join(f"w{place}" for place in range(3000))], ["four words are few"], [""],
]  # fmt: skip


@pytest.mark.parametrize("chunk", [1, 7, 180, 10_000])
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_a_signature_does_not_depend_on_what_is_signed_with_it(
    batch: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = np.array([signature(texts) for texts in MIXED])
    monkeypatch.setattr(minhash, "_CHUNK", chunk)
    monkeypatch.setattr(minhash, "_BATCH", batch)
    np.testing.assert_array_equal(signatures(MIXED), expected)
    np.testing.assert_array_equal(signatures(MIXED[::-1]), expected[::-1])
    assert len(np.unique(expected, axis=0)) == len(MIXED) - 2


def test_signatures_of_nothing_are_an_empty_table() -> None:
    assert signatures([]).shape == (0, NUM_BANDS)


def test_signatures_are_equal_in_every_process() -> None:
    lines = (
        "from sft.data.dedup.minhash import signature",
        "print(signature(['What is it?', 'naïve seeds.']).tolist())",
    )
    code = "\n".join(lines)
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
    assert runs[0] == runs[1] == f"{signature(['What is it?', 'naïve seeds.']).tolist()}\n"


@given(one=hashes, other=hashes)
def test_similarity_is_that_of_the_sets(one: set[int], other: set[int]) -> None:
    expected = len(one & other) / len(one | other) if one | other else 0.0
    assert jaccard(as_array(one), as_array(other)) == expected


def test_shingles_are_sorted_and_distinct() -> None:
    found = shingles(["ha ha ha ha ha ha ha", "one two three four five six"])
    assert (np.diff(found.all) > 0).all()
    assert len(shingles(["ha " * 50, "ha " * 50]).all) == 1


def test_two_questions_on_one_passage_are_as_unlike_as_their_answers() -> None:
    passage, _ = pair("passage", 0)
    one = shingles([f"Who wrote it? {passage[1]}", "A poet of the last century wrote it."])
    other = shingles([f"When was it written? {passage[1]}", "Nobody knows, but before the great fire."])
    assert jaccard(one.all, other.all) > 0.8
    assert one.similarity(other) == 0


def test_equal_answers_to_unlike_questions_are_unlike() -> None:
    one, other = Shingles(as_array({1, 2, 3}), as_array({1})), Shingles(as_array({1, 4, 5}), as_array({1}))
    assert one.similarity(other) == 1 / 5
