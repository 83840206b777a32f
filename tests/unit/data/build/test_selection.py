"""Each conversation is packed once: exact and near repetitions are dropped, and the one that is kept is named."""

import unicodedata
from collections.abc import Callable
from typing import Any

import pytest

from sft.data.build.build import build
from sft.data.inspect.verify import verify
from sft.data.shards import Shards

SEQ_LEN = 2048
Rows = list[list[str]]


def built(raw: Any, *arguments: str) -> Shards:
    shards = build(raw.config(f"seq_len={SEQ_LEN}", *arguments), raw.recipes)
    verify(shards.folder)
    return shards


def kept(shards: Shards) -> list[tuple[str, int]]:
    """Source and row of every document that is packed."""
    table = shards.documents
    return [(table.sources[source], row) for source, row in zip(table.source.tolist(), table.row.tolist(), strict=True)]


def dropped(shards: Shards) -> dict[tuple[str, int], tuple[str, int]]:
    """Source and row of every repeated conversation, and of its twin."""
    return {
        (line["source"], line["row"]): (line["twin"]["source"], line["twin"]["row"])
        for line in shards.quarantine()
        if line["twin"] is not None
    }


def others(name: str, count: int = 3) -> Rows:
    """Conversations that repeat nothing."""
    return [[f"{name} asks for {n}?", f"{name} says {n * n}."] for n in range(count)]


SAME = ["Is the café open?", "Yes, until six. A\u030a"]
NFC, NFD = ([unicodedata.normalize(form, text) for text in SAME] for form in ("NFC", "NFD"))

# ------------------------------------------------------------------------------------------------ exact


def test_the_first_in_the_order_of_sources_is_kept(write_mixture: Callable[..., Any]) -> None:
    """The sources are in the order of their names, wherever the mixture names them."""
    raw = write_mixture(
        zeta=[SAME, *others("zeta"), SAME],
        beta=[*others("beta"), SAME],
        alpha=[*others("alpha"), ["no answer"], SAME, SAME],
    )
    shards = built(raw)
    first = ("alpha", 4)
    assert dropped(shards) == dict.fromkeys([("alpha", 5), ("beta", 3), ("zeta", 0), ("zeta", 4)], first)
    assert kept(shards) == [
        *[("alpha", 0), ("alpha", 1), ("alpha", 2), first],
        *[("beta", n) for n in range(3)],
        *[("zeta", n) for n in range(1, 4)],
    ]


SAME_TURNS: dict[str, tuple[list[str], list[str]]] = {
    "equal": (SAME, SAME),
    "composed and decomposed": (NFC, NFD),
    "decomposed and composed": (NFD, NFC),
    "several exchanges": (SAME + others("x")[0], NFD + others("x")[0]),
}


@pytest.mark.parametrize(("one", "two"), SAME_TURNS.values(), ids=SAME_TURNS)
def test_equal_turns_are_a_duplicate(one: list[str], two: list[str], write_mixture: Callable[..., Any]) -> None:
    shards = built(write_mixture(alpha=[*others("alpha"), one, two]))
    assert dropped(shards) == {("alpha", 4): ("alpha", 3)}


OTHER_TURNS: dict[str, tuple[list[str], list[str]]] = {
    "another answer": (SAME, [SAME[0], "No."]),
    "case": (SAME, [SAME[0].upper(), SAME[1]]),
    "another exchange": (SAME, SAME + others("x")[0]),
    "another border between turns": (["a b", "c"], ["a", "b c"]),
    "compatibility forms": (["\ufb01ne?", "yes"], ["fine?", "yes"]),
    "a turn that quotes": (['a", "b', "c"], ["a", "b", "c", "d"]),
}


@pytest.mark.parametrize(("one", "two"), OTHER_TURNS.values(), ids=OTHER_TURNS)
def test_other_turns_are_no_duplicate(one: list[str], two: list[str], write_mixture: Callable[..., Any]) -> None:
    shards = built(write_mixture(alpha=[one, two, *others("alpha")]))
    assert dropped(shards) == {}
    assert len(shards.documents) == 5


def test_the_system_text_makes_no_difference(write_mixture: Callable[..., Any]) -> None:
    raw = write_mixture(alpha=[SAME, *others("alpha")], beta=[SAME, *others("beta")])
    assert dropped(built(raw, "sources.beta.system=card")) == {("beta", 0): ("alpha", 0)}


def test_a_source_that_keeps_its_duplicates_keeps_all(write_mixture: Callable[..., Any]) -> None:
    raw = write_mixture(alpha=[*others("alpha"), SAME], beta=[SAME, SAME, *others("beta")])
    keeping = built(raw, "sources.beta.duplicates=keep", f"out={raw.mixture.parent / 'keeping'}")
    assert dropped(keeping) == {}
    assert kept(keeping).count(("beta", 0)) == kept(keeping).count(("beta", 1)) == 1
    assert keeping.manifest.sources["beta"].distinct_conversations == 4
    dropping = built(raw, "sources.alpha.duplicates=keep", f"out={raw.mixture.parent / 'dropping'}")
    assert dropped(dropping) == {("beta", 0): ("alpha", 3), ("beta", 1): ("alpha", 3)}


def test_what_is_kept_twice_is_held_out_or_learnt_twice(write_mixture: Callable[..., Any]) -> None:
    rows = [*others("alpha", 20)] * 3
    table = built(write_mixture(alpha=rows), "sources.alpha.duplicates=keep", "valid_share=0.3").documents
    valid = {row % 20 for row in table.row[table.held_out].tolist()}
    assert 0 < len(valid) < 20
    assert int(table.held_out.sum()) == 3 * len(valid)


def test_a_twin_is_written_into_the_quarantine(write_mixture: Callable[..., Any]) -> None:
    raw = write_mixture(alpha=[["no answer"], [SAME[0], "x" * 500], NFC], beta=[*others("beta"), NFD])
    shards = built(raw)
    unanswered, repeated = shards.quarantine()
    assert unanswered["twin"] is None
    assert repeated == {
        "source": "beta",
        "file": "beta.jsonl",
        "row": 3,
        "piece": None,
        "reason": "duplicate",
        "detail": "same turns as alpha: alpha.jsonl, row 2",
        "excerpt": NFC[0],
        "twin": {"source": "alpha", "file": "alpha.jsonl", "row": 2, "similarity": 1.0, "excerpt": NFC[0]},
    }


def test_repeated_conversations_are_counted_as_dropped_rows(write_mixture: Callable[..., Any]) -> None:
    raw = write_mixture(alpha=[SAME, *others("alpha")], beta=[["no answer"], SAME, SAME, *others("beta")])
    facts = built(raw).manifest.sources["beta"]
    assert (facts.rows_read, facts.rows_kept, facts.rows_dropped) == (6, 3, 3)
    assert facts.reasons == {"duplicate": 2, "no_exchange": 1}


def test_a_conversation_in_pieces_is_dropped_with_all_of_them(write_mixture: Callable[..., Any]) -> None:
    long = [f"turn {n} " + "and on " * 9 for n in range(12)]
    raw = write_mixture(alpha=[long, *others("alpha"), long])
    shards = build(raw.config("seq_len=96"), raw.recipes)
    verify(shards.folder)
    rows = [row for _, row in kept(shards)]
    assert rows.count(0) > 2
    assert 4 not in rows
    assert len([line for line in shards.quarantine() if line["row"] == 4]) == 1


# ------------------------------------------------------------------------------------------------ near

NUM_WORDS = 100
SHINGLE = 5


def speech(name: str) -> list[str]:
    """A question and an answer of many words, none of them twice."""
    return [" ".join(f"{name}{turn}w{n}" for n in range(NUM_WORDS)) for turn in "qa"]


def edited(turns: list[str], *places: tuple[int, int]) -> list[str]:
    """The turns with another word at each of these (turn, word)."""
    words = [turn.split() for turn in turns]
    for turn, word in places:
        words[turn][word] = f"edit{turn}x{word}"
    return [" ".join(turn) for turn in words]


def similarity(one: list[str], two: list[str]) -> float:
    """The least of the Jaccard similarities of all turns and of the answers, straight from their definition."""

    def of(first: list[str], second: list[str]) -> float:
        a, b = (
            {tuple(words[n : n + SHINGLE]) for n in range(len(words) - SHINGLE + 1)}
            for words in (" ".join(turns).split() for turns in (first, second))
        )
        return len(a & b) / len(a | b)

    return min(of(one, two), of(one[1::2], two[1::2]))


SPEECH = speech("talk")
EDITS: dict[str, tuple[tuple[int, int], ...]] = {
    "one word of the answer": ((1, 50),),
    "first and last word of the answer": ((1, 0), (1, NUM_WORDS - 1)),
    "one word of each turn": ((0, 20), (1, 50)),
    "two words of the answer": ((1, 20), (1, 70)),
    "three words of the answer": ((1, 20), (1, 50), (1, 80)),
    "four words of the question": ((0, 10), (0, 30), (0, 50), (0, 70)),
    "half of the answer": tuple((1, n) for n in range(0, 50, 4)),
    "the whole answer": tuple((1, n) for n in range(NUM_WORDS)),
}


@pytest.mark.parametrize("threshold", [0.7, 0.8, 0.9])
def test_planted_edits_are_found_exactly_down_to_the_threshold(
    threshold: float, write_mixture: Callable[..., Any]
) -> None:
    copies = {name: (speech(f"s{n}s"), places) for n, (name, places) in enumerate(EDITS.items())}
    rows = [*others("alpha"), *(turns for turns, _ in copies.values())]
    rows += [edited(turns, *places) for turns, places in copies.values()]
    shards = built(write_mixture(alpha=rows), f"sources.alpha.near_duplicates={threshold}")
    wanted = {}
    for number, (turns, places) in enumerate(copies.values()):
        alike = similarity(turns, edited(turns, *places))
        if alike >= threshold:
            wanted[3 + len(copies) + number] = (3 + number, round(alike, 4))
    found = {line["row"]: (line["twin"]["row"], line["twin"]["similarity"]) for line in shards.quarantine()}
    assert found == wanted
    assert 0 < len(wanted) < len(EDITS)
    assert shards.manifest.sources["alpha"].reasons == {"near_duplicate": len(wanted)}


def test_a_near_duplicate_is_recorded_with_its_twin(write_mixture: Callable[..., Any]) -> None:
    copy = edited(SPEECH, (1, 50))
    raw = write_mixture(alpha=[*others("alpha"), SPEECH], beta=[copy, *others("beta")])
    (line,) = built(raw, "sources.beta.near_duplicates=0.8").quarantine()
    alike = similarity(SPEECH, copy)
    assert line == {
        "source": "beta",
        "file": "beta.jsonl",
        "row": 0,
        "piece": None,
        "reason": "near_duplicate",
        "detail": f"{alike:.3f} like alpha: alpha.jsonl, row 3",
        "excerpt": copy[0][:200],
        "twin": {
            "source": "alpha",
            "file": "alpha.jsonl",
            "row": 3,
            "similarity": round(alike, 4),
            "excerpt": SPEECH[0][:200],
        },
    }


def test_only_sources_with_a_threshold_lose_near_duplicates(write_mixture: Callable[..., Any]) -> None:
    """Also to a source without one, and each by its own."""
    some, many = edited(SPEECH, (1, 50)), edited(SPEECH, (1, 10), (1, 40), (1, 70))
    rows = [SPEECH, some, many]
    raw = write_mixture(alpha=[*rows, *others("alpha")], beta=others("b") + rows[1:], gamma=others("c") + rows[1:])
    shards = built(
        raw,
        "sources.beta.near_duplicates=0.85",
        "sources.gamma.near_duplicates=0.6",
        "sources.gamma.duplicates=keep",
        "sources.beta.duplicates=keep",
    )
    # Of equal similarity, the first is named; the most similar is not looked for.
    assert dropped(shards) == {
        ("beta", 3): ("alpha", 0),
        ("beta", 4): ("alpha", 2),
        ("gamma", 3): ("alpha", 0),
        ("gamma", 4): ("alpha", 0),
    }


def test_a_conversation_that_was_dropped_is_nobodys_twin(write_mixture: Callable[..., Any]) -> None:
    """A chain of edits: the third is close to the second, which is gone, and not to the first, which is kept."""
    second = edited(SPEECH, (1, 10), (1, 20))
    third = edited(second, (1, 50), (1, 60), (1, 80))
    assert similarity(SPEECH, second) > 0.8 > similarity(SPEECH, third)
    assert similarity(second, third) > 0.7
    rows = [*others("alpha"), SPEECH, second, second, third]
    shards = built(write_mixture(alpha=rows), "sources.alpha.near_duplicates=0.75")
    reasons = {line["row"]: line["reason"] for line in shards.quarantine()}
    assert reasons == {4: "near_duplicate", 5: "duplicate"}
    assert dropped(shards)["alpha", 5] == ("alpha", 4)


def test_the_search_sees_through_pieces_forms_and_cases(write_mixture: Callable[..., Any]) -> None:
    """A long conversation is compared as a whole, case-folded and composed."""
    turns = [text for n in range(6) for text in speech(f"é{n}n")]
    shouted = [unicodedata.normalize("NFD", text.upper()) for text in turns]
    raw = write_mixture(alpha=[*others("alpha"), turns, shouted])
    shards = build(raw.config("seq_len=1800", "sources.alpha.near_duplicates=0.95"), raw.recipes)
    assert [row for _, row in kept(shards)].count(3) > 1
    (line,) = shards.quarantine()
    assert (line["row"], line["reason"], line["twin"]["row"], line["twin"]["similarity"]) == (
        4,
        "near_duplicate",
        3,
        1.0,
    )


def test_without_a_threshold_nothing_is_searched(write_mixture: Callable[..., Any]) -> None:
    raw = write_mixture(alpha=[*others("alpha"), SPEECH, edited(SPEECH, (1, 50))])
    assert dropped(built(raw)) == {}
