"""Word hashes: what counts as a word, what counts as equal, and that every process agrees."""

import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest

from sft.data import words as module
from sft.data.words import LONGEST_RUN, ngrams, split_words, words, words_of_texts

SPLIT = [
    ("", []),
    (" \n\t", []),
    ("Hello, World!", ["hello", "world"]),
    ("don't stop", ["don", "t", "stop"]),
    ("snake_case 3.14", ["snake_case", "3", "14"]),
    ("STRASSE straße", ["strasse", "strasse"]),
    ("“naïve” – café…", ["naïve", "café"]),
    ("cafe\u0301", ["café"]),
    ("阳台上，种番茄", list("阳台上种番茄")),
    ("ok 你好 go", ["ok", "你", "好", "go"]),
    ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
    ("Привет, мир", ["привет", "мир"]),
    ("a🙂b", ["a", "🙂", "b"]),
]
TEXT = "the cat saw the dog and the dog saw the cat"


def random_texts(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    letters = "abcé Z _,.\n你ß🙂"
    return ["".join(rng.choices(letters, k=rng.randrange(60))) for _ in range(count)]


@pytest.mark.parametrize(("text", "expected"), SPLIT)
def test_words_are_case_folded_and_free_of_punctuation(text: str, expected: list[str]) -> None:
    assert split_words(text) == expected


@pytest.mark.parametrize("text", [text for text, _ in SPLIT] + random_texts(1, 50))
def test_hashes_are_those_of_the_words(text: str) -> None:
    assert words(text).tolist() == [int(words(word)[0]) for word in split_words(text)]


def test_different_words_have_different_hashes() -> None:
    several = [f"{a}{b}{c}" for a in "abcdefghij" for b in "klmnopqrst" for c in range(200)]
    assert len(set(words(" ".join(several)).tolist())) == len(several)


def test_another_process_finds_the_same_hashes() -> None:
    code = "import sft.data.words as w; print([w.words(t).tolist() for t in ('Äpfel, 梨', 'a b')])"
    environments = [{**os.environ, "PYTHONHASHSEED": seed} for seed in ("1", "2")]
    outputs = {subprocess.check_output([sys.executable, "-c", code], env=each, text=True) for each in environments}
    assert outputs == {f"{[words(text).tolist() for text in ('Äpfel, 梨', 'a b')]}\n"}


def test_hashes_stay_the_same_between_versions() -> None:
    assert words("the cat").tolist() == words("The Cat!").tolist()
    assert [hex(number) for number in words("the cat").tolist()] == ["0xb8208209ed60c7e7", "0x7ae630855b4421fe"]


def test_many_texts_are_hashed_as_each_alone() -> None:
    texts = random_texts(2, 300)
    hashes, lengths = words_of_texts(texts)
    parts = np.split(hashes, np.cumsum(lengths)[:-1])
    assert [part.tolist() for part in parts] == [words(text).tolist() for text in texts]


def test_a_long_text_is_hashed_as_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [text for text in random_texts(3, 400) if text]
    whole = words("\n".join(texts)).tolist()
    runs = ngrams(words("\n".join(texts)), 5).tolist()
    monkeypatch.setattr(module, "_BLOCK", 64)
    assert words("\n".join(texts)).tolist() == whole == [h for text in texts for h in words(text).tolist()]
    assert ngrams(words("\n".join(texts)), 5).tolist() == runs


@pytest.mark.parametrize("place", [0, 1, 40_000])
def test_a_very_long_word_counts_by_its_start_wherever_it_stands(place: int) -> None:
    before, word = "x " * place, "y" * (LONGEST_RUN + 1)
    assert words(before + word)[-1] == words(word + "z")[0] != words(word[: LONGEST_RUN - 1])[0]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 11, 12, 40])
def test_there_is_one_ngram_per_run_of_words(n: int) -> None:
    assert len(ngrams(words(TEXT), n)) == max(11 - n + 1, 0)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_equal_runs_have_equal_ngrams_and_others_have_not(n: int) -> None:
    texts = split_words(TEXT)
    runs = [tuple(texts[start : start + n]) for start in range(len(texts) - n + 1)]
    hashes = ngrams(words(TEXT), n).tolist()
    assert len(set(hashes)) == len(set(runs)) == len(set(zip(runs, hashes, strict=True)))


def test_the_order_of_words_counts() -> None:
    assert ngrams(words("man bites dog"), 3)[0] != ngrams(words("dog bites man"), 3)[0]


@pytest.mark.parametrize("text", ["a " * 50_000, "a" * 100_000, "你" * 100_000, "!" * 100_000, "\u0301" * 100_000])
def test_no_text_is_slow(text: str) -> None:
    words("warm-up")
    start = time.process_time()
    ngrams(words(text), 13)
    assert time.process_time() - start < 0.2
