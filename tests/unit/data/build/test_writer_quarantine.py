"""What a source has redacted is nowhere in its build, not even in what is said of the rows that were dropped."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from sft.data.build.build import build
from sft.data.shards import Shards

PERSON, PHONE = "jo.miller@acme-corp.com", "212-555-0123"
OTHERS = [[f"Which number follows {n}?", f"The number that follows is {n + 1}."] for n in range(40)]
LONG = "and so on " * 200

DROPPED: dict[str, tuple[list[str], str, tuple[str, ...]]] = {
    "by its recipe": ([f"Write to {PERSON}?"], "no_exchange", ()),
    "by its recipe, after a line": ([f"Call\n{PHONE}"], "no_exchange", ()),
    "for a short answer": ([f"I am Jo, {PERSON}.", "x"], "length", ("min_answer_characters=2",)),
    "for a short answer, the address in it": (["Who?", PERSON], "length", ("min_answer_characters=25",)),
    "for its length": ([f"I am Jo, {PERSON}.", LONG], "length", ("max_characters=1000",)),
    "for its language": (
        [f"Wohin schreibe ich, an {PERSON}?", "Wähle einen sonnigen Platz und gieße jeden Morgen die Tomaten."],
        "language",
        ("language=en",),
    ),
    "as a refusal that tells it": (
        ["Who is it?", f"As an AI language model, I cannot tell that {PERSON} is Jo."],
        "refusal",
        ("refusals=drop",),
    ),
    "as too long a piece": ([f"I am Jo, {PERSON}.", LONG], "too_long", ()),
    "as unreadable": ([f"I am Jo, {PERSON}.", "x"], "invalid_json", ("max_damaged_share=1",)),
}


def built(raw: Any, *settings: str) -> Shards:
    of_source = [f"sources.alpha.{setting}" for setting in ("personal_data=redact", "max_drop_share=1", *settings)]
    return build(raw.config(*of_source), raw.recipes)


def published_text(shards: Shards) -> str:
    names = ("quarantine.jsonl", "report.html", "README.md", "manifest.json")
    return "\n".join((shards.folder / name).read_text(encoding="utf-8") for name in names)


@pytest.mark.parametrize(("row", "reason", "settings"), DROPPED.values(), ids=DROPPED)
def test_personal_data_of_a_dropped_row_is_not_published(
    row: list[str], reason: str, settings: tuple[str, ...], write_mixture: Callable[..., Any]
) -> None:
    raw = write_mixture(alpha=[*OTHERS, row])
    if reason == "invalid_json":
        file = raw.sources_dir / "alpha.jsonl"
        file.write_text(file.read_text().rstrip("\n}"))
    shards = built(raw, *settings)
    assert {(line["row"], line["reason"]) for line in shards.quarantine()} == {(40, reason)}
    text = published_text(shards)
    for secret in (PERSON, "acme-corp", "jo.miller", PHONE):
        assert secret not in text
    kept = build(
        raw.config(*[f"sources.alpha.{s}" for s in (*settings, "max_drop_share=1")], f"out={raw.recipes}-k"),
        raw.recipes,
    )
    assert any(secret in published_text(kept) for secret in (PERSON, PHONE))


@pytest.mark.parametrize("reason", ["no_exchange", "too_long"])
@pytest.mark.parametrize("num_addresses", [0, 1, 5, 12])
def test_no_half_of_an_address_is_left_by_the_cut(
    reason: str, num_addresses: int, write_mixture: Callable[..., Any]
) -> None:
    """An address at every place around the cut, behind others that get shorter when they are redacted."""
    before = " ".join(f"friend{n}.of.many@a-long-name-of-a-host.acme-corp.com" for n in range(num_addresses))
    rows = [[f"{before} {'=' * n} {PERSON} or so?", LONG] for n in range(0, 420, 7)]
    shards = built(write_mixture(alpha=[*OTHERS, *(row[: 1 if reason == "no_exchange" else 2] for row in rows)]))
    lines = list(shards.quarantine())
    assert len(lines) == len(rows)
    assert {line["reason"] for line in lines} == {reason}
    halves = [PERSON[:length] for length in range(len("jo.mil"), len(PERSON))]
    left = [line["excerpt"] for line in lines if any(half in line["excerpt"] for half in [*halves, "friend", "@"])]
    assert left == []


def test_an_address_that_a_row_spells_with_escapes_is_not_published(write_mixture: Callable[..., Any]) -> None:
    raw = write_mixture(alpha=OTHERS)
    with (raw.sources_dir / "alpha.jsonl").open("a") as stream:
        stream.write(json.dumps({"turns": [PERSON]}).replace("@", "\\u0040") + "\n")
    assert "acme-corp" not in published_text(built(raw))


def test_a_recipe_that_quotes_the_row_publishes_no_address(write_mixture: Callable[..., Any]) -> None:
    raw = write_mixture(alpha=[*OTHERS, [PERSON]])
    path = raw.recipes / "alpha" / "convert.py"
    reason = 'return Drop(Reason.WRONG_SCHEMA, f"only {turns[0]} is there")'
    code = path.read_text().replace(
        "    return from_turns(", f"    if len(turns) == 1:\n        {reason}\n    return from_turns("
    )
    path.write_text("from sft.chat.conversation import Drop, Reason\n" + code)
    shards = built(raw, "max_damaged_share=1")
    assert [line["detail"] for line in shards.quarantine()] == ["only <email> is there"]
    assert "acme-corp" not in published_text(shards)
