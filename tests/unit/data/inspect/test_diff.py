"""Two builds are compared row by row: what was gained, lost, changed, moved, and why."""

import io
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sft.data.build.build import build
from sft.data.inspect.diff import Diff, SourceDiff, diff, summary
from sft.data.inspect.show_diff import show_diff
from sft.data.shards import KIND, SCHEMA_VERSION, Shards
from sft.errors import ConfigError, DataError
from sft.storage.manifest import write_manifest

ROWS = [[f"question {n}", f"answer {n}"] for n in range(20)]
Make = Callable[..., Shards]


@pytest.fixture
def make(write_mixture: Callable[..., Any]) -> Make:
    """Builds rows of a source `talks` with settings, each time into a new folder."""
    raw, numbers = write_mixture(talks=[]), itertools.count()

    def made(rows: list[list[str]], *settings: str) -> Shards:
        (raw.sources_dir / "talks.jsonl").write_text("".join(json.dumps({"turns": row}) + "\n" for row in rows))
        config = raw.config(*settings)
        return build(replace(config, out=f"{config.out}-{next(numbers)}"), raw.recipes)

    return made


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def only(result: Diff) -> SourceDiff:
    assert list(result.sources) == ["talks"]
    return result.sources["talks"]


def places(rows: Any, side: Any, shards: Shards) -> list[int]:
    return [int(shards.documents.row[side.first_document_N[row]]) for row in rows]


def shown(a: Shards, b: Shards, **options: Any) -> str:
    stream = io.StringIO()
    show_diff(a.folder, b.folder, Console(file=stream, width=80), **options)
    return stream.getvalue()


def test_another_system_text_of_as_many_tokens_is_a_change(make: Make) -> None:
    a, b = (make(ROWS, f"sources.talks.system=Answer {letter}.") for letter in "xy")
    assert a.documents.num_tokens.tolist() == b.documents.num_tokens.tolist()
    found = only(diff(a, b))
    assert (found.num_same, len(found.text[0]), len(found.tokens[0])) == (0, 0, 20)


def test_equal_builds_do_not_differ(make: Make) -> None:
    a, b = make(ROWS), make(ROWS)
    result = diff(a, b)
    item = only(result)
    assert result.is_same_build
    assert (item.num_a, item.num_b, item.num_same) == (20, 20, 20)
    assert not result.settings
    assert "the same build: the manifests record the same bytes" in shown(a, b)


@pytest.mark.parametrize("name", ["documents.arrow", "quarantine.jsonl", "tokenizer.json"])
def test_a_flipped_bit_is_no_equal_build(name: str, make: Make) -> None:
    a, b = make([*ROWS, ["no answer"]]), make([*ROWS, ["no answer"]])
    flip_a_bit(b.folder / name)
    with pytest.raises(DataError, match=f"{name}: changed"):
        shown(a, b)


def test_examples_are_not_taken_from_a_changed_shard(make: Make) -> None:
    a, b = make(ROWS), make(ROWS, "supervise=all")
    flip_a_bit(b.folder / "train-00000-of-00001.arrow")
    with pytest.raises(DataError, match=r"train-00000-of-00001\.arrow: changed"):
        shown(a, b)
    assert "supervise:" in shown(a, b, num_examples=0)


def test_names_cannot_command_the_terminal(make: Make, tmp_path: Path) -> None:
    folders = []
    for number, shards in enumerate((make(ROWS), make(ROWS, "supervise=all"))):
        folder = shards.folder.rename(tmp_path / f"\x1b[2J{number}")
        talks = replace(shards.manifest.sources["talks"], reasons={"[red]\x9b31m": number})
        owned = replace(shards.manifest, name="\x1b]0;owned\x07", sources={"talks": talks})
        write_manifest(folder, KIND, SCHEMA_VERSION, owned.to_json())
        folders.append(Shards.open(folder))
    text = shown(*folders)
    assert {character for character in text if not character.isprintable()} == {"\n"}
    assert "\\u001b]0;owned" in text
    assert "[red]\\u009b31m" in text


def test_another_text_in_the_same_row_is_a_change(make: Make) -> None:
    other = [*ROWS[:5], ["question 5", "another answer"], *ROWS[6:]]
    a, b = make(ROWS), make(other)
    result = diff(a, b)
    item = only(result)
    assert item.num_same == 19
    assert places(item.text[0], result.rows_a, a) == places(item.text[1], result.rows_b, b) == [5]
    assert len(item.tokens[0]) == len(item.lost) == len(item.gained) == 0
    text = shown(a, b)
    assert "talks.jsonl, row 5: tokens" in text
    assert "- <|ASSISTANT|>answer 5<|endoftext|>" in text
    assert "+ <|ASSISTANT|>another answer<|endoftext|>" in text


def test_other_loss_on_the_same_text_is_told_apart(make: Make) -> None:
    a, b = make(ROWS), make(ROWS, "supervise=all")
    item = only(diff(a, b))
    assert (item.num_same, len(item.text[0]), len(item.tokens[0])) == (0, 0, 20)
    text = shown(a, b)
    assert 'supervise: "assistant" → "all"' in text
    assert ", the same text" in text


def test_an_end_token_that_only_one_build_writes_is_no_example(make: Make) -> None:
    text = shown(make(ROWS), make(ROWS, "end_token=false"))
    assert "end_token: true → false" in text
    assert "<|endoftext|>" not in text


def test_pieces_are_compared_too(make: Make) -> None:
    long = [text for turn in range(6) for text in (f"question number {turn}?", f"answer number {turn}.")]
    rows = [long, *ROWS[1:]]
    result = diff(make(rows, "seq_len=64"), make(rows, "seq_len=2048"))
    item = only(result)
    assert len(item.tokens[0]) == 1
    assert result.rows_a.counts_N5[item.tokens[0][0], 2] > result.rows_b.counts_N5[item.tokens[1][0], 2] == 1


def test_a_lost_row_has_the_other_builds_reason(make: Make) -> None:
    rows = [*ROWS, ROWS[3]]
    a, b = make(rows, "sources.talks.duplicates=keep"), make(rows)
    result = diff(a, b)
    item = only(result)
    assert places(item.lost, result.rows_a, a) == [20]
    assert item.lost_reasons == {"duplicate": 1}
    assert item.gained_reasons == {}
    assert item.num_shared_digests == 20
    text = shown(a, b)
    assert "lost from talks, in B: duplicate 1" in text
    assert "talks.jsonl, row 20: duplicate, same turns as talks: talks.jsonl, row 3" in text
    assert only(diff(b, a)).gained_reasons == {"duplicate": 1}


@pytest.mark.parametrize(
    ("setting", "reason"),
    [("sources.talks.num_conversations=5", "left_out"), ("sources.talks.max_rows=12", "not_read")],
)
def test_a_row_without_record_is_told_apart(setting: str, reason: str, make: Make) -> None:
    a, b = make(ROWS), make(ROWS, setting)
    item = only(diff(a, b))
    assert item.lost_reasons == {reason: len(item.lost)}
    assert len(item.lost) == 20 - item.num_b > 0


def test_every_row_is_of_one_kind(make: Make) -> None:
    a = make([*ROWS, ROWS[3]], "sources.talks.duplicates=keep", "sources.talks.weight=0.8")
    b = make([*ROWS[:4], ["changed", "row"], *ROWS[5:], ["a new", "row"]], "sources.talks.max_rows=18")
    item = only(diff(a, b))
    pairs = item.num_same + len(item.text[0]) + len(item.tokens[0])
    assert pairs + len(item.lost) == item.num_a
    assert pairs + len(item.gained) == item.num_b
    assert sum(item.lost_reasons.values()) == len(item.lost)


def test_rows_that_change_sides_are_counted(make: Make) -> None:
    a, b = make(ROWS, "valid_conversations=2"), make(ROWS, "valid_conversations=6")
    item = only(diff(a, b))
    assert (item.num_same, len(item.moved[0]), item.num_to_valid) == (20, 4, 4)
    assert only(diff(b, a)).num_to_valid == 0
    assert "split train → valid" in shown(a, b)


def test_rows_packed_more_often_are_counted(make: Make) -> None:
    a, b = make(ROWS), make(ROWS, "sources.talks.epochs=2")
    item = only(diff(a, b))
    assert item.num_repacked == int((b.documents.uses == 2).sum()) > 0


def test_renamed_files_are_matched_by_their_turns(make: Make, tmp_path: Path) -> None:
    a = make(ROWS)
    (tmp_path / "raw" / "talks.jsonl").rename(tmp_path / "raw" / "talks.jsonl.old")
    recipe = tmp_path / "recipes" / "talks" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("talks.jsonl", "renamed.jsonl"))
    (tmp_path / "raw" / "renamed.jsonl").write_text((tmp_path / "raw" / "talks.jsonl.old").read_text())
    b = make(ROWS)
    item = only(diff(a, b))
    assert (len(item.lost), len(item.gained), item.num_same) == (20, 20, 0)
    assert item.num_shared_digests == 20
    text = shown(a, b)
    assert "talks, in whatever row: 20 conversations in both, of 20 and 20" in text
    assert "the same turns are in renamed.jsonl, row 0" in text


def test_a_source_that_only_one_build_has_is_lost(write_mixture: Callable[..., Any]) -> None:
    raw = write_mixture(talks=ROWS, more=[["x", "y"], ["z", "w"]])
    a = build(raw.config(), raw.recipes)
    config = raw.config("sources.more.enabled=false")
    b = build(replace(config, out=f"{config.out}-b"), raw.recipes)
    result = diff(a, b)
    assert ("sources.more", "present", "absent") in result.settings
    assert result.sources["more"].lost_reasons == {"not_read": 2}
    assert result.sources["talks"].num_same == 20
    assert "more: lost" in shown(a, b)


def test_settings_that_differ_alike_are_told_once(write_mixture: Callable[..., Any]) -> None:
    raw = write_mixture(one=ROWS, two=[["x", "y"], ["z", "w"]])
    a = build(raw.config(), raw.recipes)
    config = raw.config("sources.one.repair=false", "sources.two.repair=false", "sources.two.weight=0.9")
    b = build(replace(config, out=f"{config.out}-b"), raw.recipes)
    assert diff(a, b).settings == [("sources.one,two.repair", True, False), ("sources.two.weight", 1.0, 0.9)]


def test_the_whole_result_is_written_as_json(make: Make, tmp_path: Path) -> None:
    other = [*ROWS[:5], ["question 5", "another answer"], *ROWS[6:]]
    a, b = make(ROWS), make(other)
    shown(a, b, json_file=tmp_path / "diff.json", num_examples=1)
    facts = json.loads((tmp_path / "diff.json").read_text())
    (example,) = facts["sources"]["talks"].pop("examples")["text changed"]
    assert (example["file"], example["row"]) == ("talks.jsonl", 5)
    assert facts == json.loads(json.dumps(summary(diff(a, b))))
    assert facts["sources"]["talks"]["rows"]["text_changed"] == 1


@pytest.mark.parametrize(("count", "expected"), [(0, []), (1, [0]), (3, [0, 9, 19])])
def test_examples_are_spread_over_the_source(count: int, expected: list[int], make: Make, tmp_path: Path) -> None:
    a, b = make(ROWS), make(ROWS, "supervise=all")
    shown(a, b, num_examples=count, json_file=tmp_path / "diff.json")
    kinds = json.loads((tmp_path / "diff.json").read_text())["sources"]["talks"]["examples"]
    assert [example["row"] for example in kinds.get("tokens changed", [])] == expected


def test_a_negative_number_of_examples_is_refused(make: Make) -> None:
    shards = make(ROWS)
    with pytest.raises(ConfigError, match="--examples -1"):
        shown(shards, shards, num_examples=-1)


def test_rows_cannot_command_the_terminal(make: Make) -> None:
    hostile = [*ROWS[:5], ["question 5", "\x9b2J \u202e\u200b"], *ROWS[6:], ["\x9b31m", "x"]]
    text = shown(make(ROWS, "sources.talks.repair=false"), make(hostile, "sources.talks.repair=false"))
    assert {character for character in text if not character.isprintable()} == {"\n"}
    assert r"\x9b2J \u202e\u200b" in text


def test_tables_fit_into_a_batch_log(make: Make) -> None:
    text = shown(make(ROWS), make([*ROWS[:5], ["question 5", "another answer"]], "sources.talks.epochs=2"))
    behind_the_settings = text.partition("rows kept")[2].partition("talks: ")[0]
    assert max(map(len, behind_the_settings.splitlines())) <= 81
    assert "…" not in behind_the_settings
