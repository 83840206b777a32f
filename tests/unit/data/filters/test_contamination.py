"""Conversations that share a run of words with an evaluation text are found, and only those."""

import gzip
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sft.chat.conversation import Conversation, Drop, Reason
from sft.data import words
from sft.data.filters import contamination
from sft.data.filters.contamination import LEAST_WORDS, EvaluationIndex
from sft.errors import DataError

Talk = Callable[..., Conversation]
LONG = "Which of the following planets in our solar system has the greatest number of confirmed moons today?"
SHORT = "Name the three primary colours of visible light."
N = 13


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., EvaluationIndex]:
    """Makes an index of texts, one per row of a file."""

    def make(*texts: str, ngram_words: int = N) -> EvaluationIndex:
        path = tmp_path / "quiz.jsonl"
        path.write_text("\n".join(json.dumps({"q": text}) for text in texts))
        return EvaluationIndex.load([path], ngram_words)

    return make


def random_text(rng: random.Random, num_words: int, vocabulary: int = 50) -> str:
    return " ".join(f"w{rng.randrange(vocabulary)}" for _ in range(num_words))


def shares(text: str, other: str, n: int) -> bool:
    """Whether the texts have a run of n words in common: the definition, spelled out."""
    runs = [[tuple(part[i : i + n]) for i in range(len(part) - n + 1)] for part in (text.split(), other.split())]
    return bool(set(runs[0]) & set(runs[1]))


def count_splits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that are split into words from now on."""
    split: list[str] = []

    def counting(text: str) -> list[str]:
        split.append(text)
        return words.split_words(text)

    monkeypatch.setattr(contamination, "split_words", counting)
    return split


@pytest.mark.parametrize("change", [str.upper, str.lower, lambda text: text.replace(" ", ",\n ")])
@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_an_evaluation_text_is_found_in_any_turn_and_dress(
    talk: Talk, load: Callable[..., EvaluationIndex], change: Callable[[str], str], turn: int
) -> None:
    texts = ["hello", "there", "what", "now"]
    texts[turn] = f"So: {change(LONG)} Thanks"
    drop = load("another question of a few words only, nothing more", LONG).match(talk(*texts))
    shown = " ".join(words.split_words(LONG))
    assert drop == Drop(Reason.CONTAMINATED, f'17 words in common with quiz.jsonl, row 1: "{shown}"')


@pytest.mark.parametrize(("num_words", "is_found"), [(N - 1, False), (N, True), (N + 1, True)])
@pytest.mark.parametrize("start", [0, 2])
def test_a_part_counts_from_n_words_on(
    talk: Talk, load: Callable[..., EvaluationIndex], num_words: int, is_found: bool, start: int
) -> None:
    part = " ".join(LONG.split()[start : start + num_words])
    assert (load(LONG).match(talk("hm", f"x {part} y")) is not None) == is_found


def test_a_short_text_counts_as_a_whole_only(talk: Talk, load: Callable[..., EvaluationIndex]) -> None:
    index = load(SHORT + " Now!", LONG)
    drop = index.match(talk("Please: name the three primary colours of visible light NOW", "Red, green, blue."))
    assert isinstance(drop, Drop)
    assert drop.detail.startswith("9 words in common with quiz.jsonl, row 0: ")
    assert index.match(talk(SHORT, "Red, green, blue.")) is None


def test_words_of_two_evaluation_texts_are_no_run(talk: Talk, load: Callable[..., EvaluationIndex]) -> None:
    first, second = "one two three four five six seven eight nine", "ten eleven twelve thirteen fourteen fifteen a b"
    joined = " ".join([*first.split()[2:], *second.split()[:7]])
    assert load(first, second).match(talk(joined, joined)) is None


@pytest.mark.parametrize("seed", range(20))
def test_it_finds_what_the_definition_says(talk: Talk, load: Callable[..., EvaluationIndex], seed: int) -> None:
    rng = random.Random(seed)
    items = [random_text(rng, rng.randrange(5, 40), 4) for _ in range(30)]
    index = load(*items, ngram_words=5)
    found = []
    for _ in range(50):
        text = random_text(rng, 8, 6)
        expected = any(shares(text, item, 5) for item in items)
        assert (index.match(talk("q", text)) is not None) == expected
        found.append(expected)
    assert len(set(found)) == 2


def test_a_collision_of_hashes_drops_nothing(
    talk: Talk, load: Callable[..., EvaluationIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = contamination.ngrams
    monkeypatch.setattr(contamination, "ngrams", lambda words_W, n: real(words_W, n) % 2)
    index = load(LONG, SHORT)
    assert index.match(talk("q", random_text(random.Random(0), 60))) is None
    assert index.match(talk("q", f"{random_text(random.Random(0), 60)} {LONG}")) is not None


@pytest.mark.parametrize("num_opening", [LEAST_WORDS, N - 2])
def test_texts_that_open_alike_are_neither_mixed_up_nor_compared_one_by_one(
    talk: Talk, load: Callable[..., EvaluationIndex], monkeypatch: pytest.MonkeyPatch, num_opening: int
) -> None:
    opening = " ".join(LONG.split()[:num_opening])
    index = load(*(f"{opening} item{number}" for number in range(300)))
    split = count_splits(monkeypatch)
    assert index.match(talk(f"{opening} nothing. " * 20, f"{opening} item300")) is None
    assert split == []
    drop = index.match(talk(f"{opening} nothing. " * 20, f"{opening} item217"))
    assert isinstance(drop, Drop)
    assert drop.detail.startswith(f"{num_opening + 1} words in common with quiz.jsonl, row 217: ")
    assert len(split) == 2


def test_a_conversation_is_spelled_once_however_many_hashes_collide(
    talk: Talk, load: Callable[..., EvaluationIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = contamination.ngrams
    monkeypatch.setattr(contamination, "ngrams", lambda words_W, n: real(words_W, n) % 2)
    index = load(LONG, SHORT)
    split = count_splits(monkeypatch)
    text = random_text(random.Random(0), 60)
    assert index.match(talk("q", text)) is None
    assert split.count(f"q\n{text}") == 1
    assert len(split) > 10


def test_every_string_of_a_row_is_a_text(talk: Talk, tmp_path: Path) -> None:
    rows = [{"id": 7, "none": None}, {"q": {"choices": ["no", LONG], "key": 3}}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    drop = EvaluationIndex.load([tmp_path / "a.json"], N).match(talk(LONG, "Saturn"))
    assert isinstance(drop, Drop)
    assert "a.json, row 1: " in drop.detail


def test_the_paragraphs_of_a_text_file_are_its_texts(talk: Talk, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(f"[first] paragraph\n\n \n{LONG.replace(' planets', chr(10) + 'planets')}\n\n\nlast\n")
    drop = EvaluationIndex.load([path], N).match(talk(LONG, "Saturn"))
    assert isinstance(drop, Drop)
    assert "a.txt, row 1: " in drop.detail


def test_several_files_are_one_index_and_may_be_compressed(talk: Talk, tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as stream:
        stream.write(json.dumps({"q": LONG}))
    (tmp_path / "b.txt").write_text(SHORT + " Now!")
    index = EvaluationIndex.load([tmp_path / "a.jsonl.gz", tmp_path / "b.txt"], N)
    details = [drop.detail for text in (LONG, SHORT + " now") if (drop := index.match(talk(text, "yes")))]
    assert [detail.split('"')[0] for detail in details] == [
        "17 words in common with a.jsonl.gz, row 0: ",
        "9 words in common with b.txt, row 0: ",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", None, "no such evaluation file"),
        ("a.txt", b"", "no text of at least 8 words"),
        ("a.txt", b"too short", "no text of at least 8 words"),
        ("a.txt", b"\xff\xfe", "not UTF-8: byte 0"),
        ("a.jsonl", b"", "no text of at least 8 words"),
        ("a.jsonl", b'{"q": 1}\n{"q": ', "row 1: invalid_json"),
        ("a.json", b'["text"]', "row 0: wrong_schema"),
        ("a.csv", b"x", "not an evaluation file"),
        ("a.jsonl.gz", b"\x1f\x8b\x08", "damaged or cut short"),
    ],
)
def test_a_file_without_evaluation_texts_is_an_error(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        EvaluationIndex.load([tmp_path / name], N)
    assert error.value.on == tmp_path / name


def test_loading_and_matching_keep_their_speed(talk: Talk, load: Callable[..., EvaluationIndex]) -> None:
    rng = random.Random(0)
    texts = [random_text(rng, 40, 5000) for _ in range(5000)]
    start = time.process_time()
    index = load(*texts)
    assert time.process_time() - start < 1.5  # 100,000 texts take some 3 s
    conversations = [talk(random_text(rng, 200), random_text(rng, 700)) for _ in range(20)]
    start = time.process_time()
    assert [index.match(conversation) for conversation in conversations] == [None] * 20
    assert time.process_time() - start < 0.1
