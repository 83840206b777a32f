"""A build with evaluation files drops the conversations that share text with them, and says with which."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft.data.build import build as build_module
from sft.data.build.build import build
from sft.data.manifest import EvaluationFile
from sft.data.shards import Shards
from sft.errors import ConfigError, DataError
from sft.hashing import file_sha256

QUESTION = "A ferry leaves the northern harbour every forty minutes; how many crossings does it make before noon?"
SHARED = " ".join(QUESTION.split()[2:15])
ROWS = {"zeta": 5, "alpha": 11}
"""The contaminated row of each source."""


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def built(raw: Any, *files: Path, out: str = "shards", settings: tuple[str, ...] = ()) -> Shards:
    evaluation = ",".join(str(file) for file in files)
    place = f"out={raw.sources_dir.parent / out}"
    return build(raw.config("seq_len=256", f"evaluation_files=[{evaluation}]", place, *settings), raw.recipes)


def dropped(shards: Shards) -> set[tuple[str, int]]:
    return {(line["source"], line["row"]) for line in shards.quarantine()}


@pytest.fixture
def raw(write_mixture: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two sources of 20 rows in chunks of 7; a row of each, in another turn, quotes 13 words of the question."""
    monkeypatch.setattr(build_module, "ROWS_PER_CHUNK", 7)
    sources = {name: [[f"{name} {number}?", f"answer {number}"] for number in range(20)] for name in ROWS}
    sources["zeta"][5] = [f"Tell me: {SHARED.upper()} or not?", "many"]
    sources["alpha"][11] = ["What was the text?", f"It was: {SHARED}."]
    sources["alpha"][3] = [" ".join(SHARED.split()[:12]), "12 words are no evidence"]
    return write_mixture(**sources)


@pytest.fixture
def quiz(tmp_path: Path) -> Path:
    """An evaluation file whose second row is the question."""
    path = tmp_path / "questions" / "quiz.jsonl"
    path.parent.mkdir()
    other = "Which of these metals melts in the palm of a hand on a warm day?"
    path.write_text("".join(json.dumps({"q": text}) + "\n" for text in (other, QUESTION)))
    return path


# ------------------------------------------------------------------------------------------------ what is dropped


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".txt"])
def test_conversations_that_share_text_are_dropped_and_no_others(raw: Any, quiz: Path, suffix: str) -> None:
    file = quiz.with_suffix(suffix)
    rows = [json.loads(line) for line in quiz.read_text().splitlines()]
    texts = {".jsonl": quiz.read_text(), ".json": json.dumps(rows), ".txt": "\n\n".join(row["q"] for row in rows)}
    file.write_text(texts[suffix])
    shards = built(raw, file)
    assert dropped(shards) == set(ROWS.items())
    assert len(shards.documents) == 38
    for line in shards.quarantine():
        assert line["reason"] == "contaminated"
        assert line["detail"] == f'13 words in common with quiz{suffix}, row 1: "{SHARED.replace(";", "")}"'
    for name in ROWS:
        facts = shards.manifest.sources[name]
        assert (facts.rows_kept, facts.reasons) == (19, {"contaminated": 1})


def test_without_evaluation_files_all_stay(raw: Any) -> None:
    assert dropped(built(raw)) == set()


def test_a_source_may_keep_what_it_shares(raw: Any, quiz: Path) -> None:
    assert dropped(built(raw, quiz, settings=("sources.zeta.decontaminate=false",))) == {("alpha", 11)}


def test_how_many_words_count_is_a_setting(raw: Any, quiz: Path) -> None:
    found = dropped(built(raw, quiz, settings=("evaluation_ngram_words=12",)))
    assert found == {*ROWS.items(), ("alpha", 3)}
    assert dropped(built(raw, quiz, settings=("evaluation_ngram_words=14",), out="longer")) == set()


# ------------------------------------------------------------------------------------------------ exactly so


def test_the_manifest_names_the_evaluation_file_and_its_content_but_not_its_place(raw: Any, quiz: Path) -> None:
    shards = built(raw, quiz)
    assert shards.manifest.evaluation_files == (EvaluationFile("quiz.jsonl", file_sha256(quiz)),)
    assert str(quiz.parent).encode() not in b"".join(content(shards.folder).values())


def test_where_the_evaluation_file_lies_does_not_change_a_byte(raw: Any, quiz: Path, tmp_path: Path) -> None:
    first = built(raw, quiz)
    moved = tmp_path / "elsewhere" / quiz.name
    moved.parent.mkdir()
    quiz.rename(moved)
    assert content(built(raw, moved, out="again").folder) == content(first.folder)
    assert built(raw, moved).folder == first.folder


def test_worker_processes_do_not_change_what_is_dropped(raw: Any, quiz: Path) -> None:
    first = content(built(raw, quiz).folder)
    assert content(built(raw, quiz, out="two", settings=("workers=2",)).folder) == first


@pytest.mark.parametrize("change", ["content", "name", "none"])
def test_another_evaluation_file_is_another_build(raw: Any, quiz: Path, change: str) -> None:
    first = content(built(raw, quiz).folder)
    files = [quiz]
    if change == "content":
        quiz.write_text(quiz.read_text().replace("ferry", "steamer"))
    elif change == "name":
        files = [quiz.rename(quiz.with_name("other.jsonl"))]
    else:
        files = []
    with pytest.raises(ConfigError, match="holds another build"):
        built(raw, *files)
    assert content(raw.sources_dir.parent / "shards") == first


def test_units_made_with_another_evaluation_file_are_not_used_again(
    raw: Any, quiz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = build_module.publish_build

    def fail(*_: Any) -> None:
        raise DataError("stopped before publishing")

    monkeypatch.setattr(build_module, "publish_build", fail)
    with pytest.raises(DataError, match="stopped before publishing"):
        built(raw, quiz)
    monkeypatch.setattr(build_module, "publish_build", original)
    quiz.write_text(json.dumps({"q": "Which of these metals melts in the palm of a hand on a warm day?"}))
    assert dropped(built(raw, quiz)) == set()


# ------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "no such evaluation file"), ("", "no text of at least 8 words"), ('{"q": "few words"}\n', "no text of")],
    ids=["missing", "empty", "too short"],
)
def test_an_evaluation_file_of_no_use_is_told_before_any_unit(
    raw: Any, quiz: Path, monkeypatch: pytest.MonkeyPatch, workers: int, text: str | None, message: str
) -> None:
    def start(*_: Any, **__: Any) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(build_module, "run_chunks", start)
    bad = quiz.with_name("bad.jsonl")
    if text is not None:
        bad.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        built(raw, quiz, bad, settings=(f"workers={workers}",))
    assert (error.value.on, error.value.exit_code) == (bad, 65)
    assert not (raw.sources_dir.parent / "shards").exists()
