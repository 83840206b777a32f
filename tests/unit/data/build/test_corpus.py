"""A corpus knows every document of its chunks: where it came from and what it says."""

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sft.chat.tokenizer import ChatTokenizer
from sft.data.build.build import collect_inputs
from sft.data.build.chunk import Chunk, ChunkFile, write_chunk
from sft.data.build.corpus import Corpus, RowId
from sft.data.build.worker import Worker
from sft.data.dedup.minhash import NUM_BANDS, signature
from sft.data.sources.files import read_rows

SEQ_LEN = 64
TURNS = {
    "short": ["How are you?", "Well."],
    "control tags": ["<|USER|><|ASSISTANT|>?", "<|endoftext|> <|SYSTEM|> is text."],
    "other scripts": ["你好，世界 🙂", "Grüße, Æ ß, привет"],
    "decomposed": ["cafe\u0301?", "A\u030angstro\u0308m"],
    "blanks": ["  two\n\n lines\t ", "\n\n answer \n"],
    "three pieces": [f"turn {n} " + "and on " * (n % 3 + 1) for n in range(12)],
}
LONG = ["short?", "an answer that does not fit " * 20]
"""A single exchange that is longer than SEQ_LEN."""


def corpus_of(raw: Any, rows_per_unit: int, *arguments: str) -> Corpus:
    """The corpus of a mixture, made without the build around it."""
    inputs = collect_inputs(raw.config(f"seq_len={SEQ_LEN}", *arguments), raw.recipes)
    worker = Worker(inputs.config, raw.recipes)
    work = Path(inputs.config.out).parent / f"chunks of {rows_per_unit}"
    work.mkdir()
    chunks = []
    for name, files in inputs.files.items():
        for file in files:
            rows = list(read_rows(file.path))
            for start in range(0, len(rows), rows_per_unit):
                path = work / f"{name} {file.name} {start}"
                write_chunk(path, worker.run(Chunk(name, file.name, rows[start : start + rows_per_unit], path.name)))
                chunks.append(ChunkFile.open(path))
    assert all(chunks)
    return Corpus([chunk for chunk in chunks if chunk], inputs.source_names, inputs.file_names)


def composed(texts: list[str]) -> list[str]:
    return [unicodedata.normalize("NFC", text) for text in texts]


@pytest.mark.parametrize("rows_per_unit", [1, 4, 100])
def test_the_turns_are_those_of_the_row(
    rows_per_unit: int, write_mixture: Callable[..., Any], tokenizer: ChatTokenizer
) -> None:
    rows = list(TURNS.values())
    corpus = corpus_of(write_mixture(beta=rows, alpha=rows[::-1]), rows_per_unit)
    assert corpus.num_conversations == 2 * len(rows)
    found = {corpus.place(number): corpus.turns(number, tokenizer) for number in range(corpus.num_conversations)}
    for name, order in (("alpha", rows[::-1]), ("beta", rows)):
        for number, turns in enumerate(order):
            assert found[RowId(name, f"{name}.jsonl", number)] == composed(turns)
    assert corpus.records["piece"].max() >= 2


def test_a_truncated_conversation_has_the_start_of_its_answer(
    write_mixture: Callable[..., Any], tokenizer: ChatTokenizer
) -> None:
    raw = write_mixture(alpha=[TURNS["short"], LONG, TURNS["short"]])
    corpus = corpus_of(raw, 100, "sources.alpha.too_long=truncate")
    assert corpus.records["truncated"].tolist() == [False, True, False]
    question, answer = corpus.turns(1, tokenizer)
    assert question == LONG[0]
    assert len(answer) > 20
    assert LONG[1].startswith(answer)


def test_a_conversation_without_its_end_token_has_the_same_turns(
    write_mixture: Callable[..., Any], tokenizer: ChatTokenizer
) -> None:
    corpus = corpus_of(write_mixture(alpha=list(TURNS.values())), 100, "end_token=false", "supervise=all")
    for number, turns in enumerate(TURNS.values()):
        assert corpus.turns(number, tokenizer) == composed(turns)


def test_dropped_rows_and_pieces_leave_the_others_in_place(
    write_mixture: Callable[..., Any], tokenizer: ChatTokenizer
) -> None:
    """The second row is no conversation, the third has only pieces that do not fit, the fourth one that does not."""
    rows = [TURNS["short"], ["question only"], LONG, ["first?", "yes", *LONG, "third?", "no"], TURNS["decomposed"]]
    corpus = corpus_of(write_mixture(alpha=rows), 2)
    assert [corpus.place(number).row for number in range(corpus.num_conversations)] == [0, 3, 4]
    assert corpus.turns(1, tokenizer) == ["first?", "yes", "third?", "no"]
    assert corpus.turns(2, tokenizer) == composed(TURNS["decomposed"])


@pytest.mark.parametrize("rows_per_unit", [1, 100])
def test_rows_of_one_number_in_two_files_or_sources_are_two_conversations(
    rows_per_unit: int, write_mixture: Callable[..., Any]
) -> None:
    raw = write_mixture(alpha=[TURNS["short"]], alpha2=[TURNS["blanks"]], beta=[TURNS["decomposed"]])
    corpus = corpus_of(raw, rows_per_unit, "sources.alpha.files=[alpha*.jsonl]", "sources.alpha2.enabled=false")
    places = [corpus.place(number) for number in range(corpus.num_conversations)]
    assert places == [
        RowId("alpha", "alpha.jsonl", 0),
        RowId("alpha", "alpha2.jsonl", 0),
        RowId("beta", "beta.jsonl", 0),
    ]


def test_a_value_per_conversation_reaches_all_its_documents(write_mixture: Callable[..., Any]) -> None:
    corpus = corpus_of(write_mixture(alpha=[TURNS["three pieces"], TURNS["short"]], beta=[TURNS["three pieces"]]), 1)
    _, pieces = np.unique(corpus.source * 10 + corpus.records["row"], return_counts=True)
    assert pieces.tolist() == [pieces[0], 1, pieces[0]]
    assert corpus.per_document(np.array([5, 6, 7])).tolist() == [5] * pieces[0] + [6] + [7] * pieces[0]
    assert len(corpus) == pieces.sum()


@pytest.mark.parametrize("rows_per_unit", [1, 3, 100])
def test_every_conversation_has_the_signature_of_its_row(rows_per_unit: int, write_mixture: Callable[..., Any]) -> None:
    """A row without documents has none, or all behind it would be taken for their neighbours."""
    rows = [TURNS["short"], LONG, *list(TURNS.values())[1:], ["question only"], ["last?", "yes"]]
    corpus = corpus_of(write_mixture(alpha=rows), rows_per_unit, "sources.alpha.near_duplicates=0.8")
    found = np.stack([corpus.bands(band) for band in range(NUM_BANDS)], axis=1)
    kept = [corpus.place(number).row for number in range(corpus.num_conversations)]
    assert kept == [number for number, turns in enumerate(rows) if turns is not LONG and len(turns) > 1]
    assert found.tolist() == [signature(rows[row]).tolist() for row in kept]


def test_conversations_of_more_units_than_are_kept_open_are_found(
    write_mixture: Callable[..., Any], tokenizer: ChatTokenizer
) -> None:
    rows = [[f"question {n}", f"answer {n}"] for n in range(150)]
    corpus = corpus_of(write_mixture(alpha=rows), 1)
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    assert [corpus.turns(number, tokenizer) for number in order * 2] == [rows[number] for number in order * 2]


def test_a_corpus_may_be_empty(write_mixture: Callable[..., Any]) -> None:
    corpus = corpus_of(write_mixture(alpha=[LONG, ["question only"]]), 1)
    assert (len(corpus), corpus.num_conversations) == (0, 0)
    assert corpus.bands(0).tolist() == []
    assert corpus.per_document(np.zeros(0)).tolist() == []
    assert len(list(corpus.chunks[0].rejected())) == 1
