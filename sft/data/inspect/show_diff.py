"""Show the difference between two builds in the terminal, with example rows, and write it as JSON."""

import difflib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sft.chat.formats.base import END
from sft.chat.turns import marker_starts
from sft.data.inspect.diff import Conversations, Diff, SourceDiff, diff, summary
from sft.data.inspect.lineage import place_of, spans
from sft.data.inspect.show import cell, one_line, print_line, share_with_loss
from sft.data.report.pack_browser import spread, visible
from sft.data.shards import Shards, Split
from sft.errors import ConfigError
from sft.storage.atomic import write_text

MAX_PLACES, MAX_LINES, LINE_CHARACTERS, BEFORE_CHARACTERS = 3, 3, 150, 40
"""Limits of an example: places that differ, lines per place, characters per line, characters before a change."""
MAX_VALUE_CHARACTERS = 60
NO_RECORD = "left out or not read there"

Example = dict[str, Any]


def show_diff(a: Path, b: Path, console: Console, *, num_examples: int = 3, json_file: Path | None = None) -> None:
    """Print the differences between two builds and, if `json_file` is given, write all of them as JSON.

    Raises: DataError if one was changed after it was published.
    """
    if num_examples < 0:
        raise ConfigError(f"--examples {num_examples}: expected 0 or more")
    result = diff(Shards.open(a, check_hashes=False), Shards.open(b, check_hashes=False))
    examples = {name: _examples(result, item, num_examples) for name, item in result.sources.items()}
    if json_file is not None:
        facts = summary(result)
        for name, item in facts["sources"].items():
            item["examples"] = examples[name]
        write_text(json_file, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    _print_overview(result, console)
    if not result.is_same_build:
        _print_rows(result, console)
        _print_counts(result, console)
        for name, kinds in examples.items():
            _print_examples(name, kinds, console)


class _Texts:
    """Decodes rows of a build; without end tokens if only one of the two builds has them."""

    def __init__(self, shards: Shards, rows: Conversations, chosen: Iterable[int], *, with_ends: bool) -> None:
        self._rows, self._with_ends = rows, with_ends
        self._shards, self._tokenizer = shards, shards.load_tokenizer()
        self._splits: dict[str, Split] = {name: shards.split(name) for name in shards.manifest.splits}
        doc_ids = [doc_id for row in chosen for doc_id in self._documents(row)]
        self._spans = {span.doc_id: span for span in spans(shards, np.array(doc_ids, np.int64))}

    def opening(self, row: int) -> str:
        """The text of a row's documents from its first question on."""
        first, *others = self._documents(row)
        ids, starts = self._tokens(first)
        return "".join([self._spelt(ids[starts[1] :]), *(self._spelt(self._tokens(other)[0]) for other in others)])

    def lines(self, row: int) -> list[str]:
        """The text of a row's documents, a new line before every marker."""
        return [line for doc_id in self._documents(row) for text in self._texts(doc_id) for line in text.split("\n")]

    def _texts(self, doc_id: int) -> Iterator[str]:
        """The texts of a document, each with the marker before it."""
        ids, starts = self._tokens(doc_id)
        edges = [0, *marker_starts(starts, self._tokenizer)[1:], len(ids)]
        return (self._spelt(ids[begin:stop]) for begin, stop in itertools.pairwise(edges))

    def _documents(self, row: int) -> range:
        first = int(self._rows.first_document_N[row])
        return range(first, first + int(self._rows.counts_N5[row, 2]))

    def _tokens(self, doc_id: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """A document's ids, without its end unless `with_ends`, and where its texts start."""
        span = self._spans[doc_id]
        ids_T = self._splits[span.split][span.pack].input_ids_T[span.start : span.stop]
        starts = self._shards.turn_starts(doc_id, ids_T, self._tokenizer)
        end = self._tokenizer.markers[END].ids
        is_ended = len(end) > 0 and np.array_equal(ids_T[-len(end) :], end)
        return ids_T[: len(ids_T) - len(end)] if is_ended and not self._with_ends else ids_T, starts

    def _spelt(self, ids_T: NDArray[Any]) -> str:
        return self._tokenizer.decode([ids_T])[0]


def _examples(result: Diff, item: SourceDiff, count: int) -> dict[str, list[Example]]:
    """Some example rows of every kind of difference, spread over the source."""
    pairs = {"text changed": item.text, "tokens changed": item.tokens, "moved": item.moved}
    chosen = {kind: (spread(a, count).tolist(), spread(b, count).tolist()) for kind, (a, b) in pairs.items()}
    lost, gained = spread(item.lost, count).tolist(), spread(item.gained, count).tolist()
    same_ends = len({shards.manifest.settings["end_token"] for shards in (result.a, result.b)}) == 1
    rows_a, rows_b = ([row for pair in chosen.values() for row in pair[side]] for side in (0, 1))
    texts_a = _Texts(result.a, result.rows_a, [*lost, *rows_a], with_ends=same_ends)
    texts_b = _Texts(result.b, result.rows_b, [*gained, *rows_b], with_ends=same_ends)
    examples = {
        kind: [
            {
                **_place(result.a, result.rows_a, a),
                "a": _numbers(result.rows_a, a),
                "b": _numbers(result.rows_b, b),
                "difference": list(_difference(texts_a.lines(a), texts_b.lines(b))),
            }
            for a, b in zip(*rows, strict=True)
        ]
        for kind, rows in chosen.items()
    }
    a, b = (result.a, result.rows_a), (result.b, result.rows_b)
    examples["lost"] = [_single(*a, row, texts_a, *b, result.records_b) for row in lost]
    examples["gained"] = [_single(*b, row, texts_b, *a, result.records_a) for row in gained]
    return {kind: found for kind, found in examples.items() if found}


def _place(shards: Shards, rows: Conversations, row: int) -> Example:
    place = place_of(shards, int(rows.first_document_N[row]))
    return {"file": place.file, "row": place.row}


def _numbers(rows: Conversations, row: int) -> Example:
    tokens, supervised, pieces, *_ = rows.counts_N5[row].tolist()
    split = "valid" if rows.held_out_N[row] else "train"
    return {"tokens": tokens, "supervised_tokens": supervised, "pieces": pieces, "split": split}


def _single(
    shards: Shards,
    rows: Conversations,
    row: int,
    texts: _Texts,
    other: Shards,
    other_rows: Conversations,
    other_records: dict[int, Example],
) -> Example:
    """A row that only one build packs, and its quarantine record or twin in the other one."""
    record = other_records.get(int(rows.key_N[row]), {})
    twins = np.flatnonzero(other_rows.digest_N == rows.digest_N[row])[:1].tolist()
    return {
        **_place(shards, rows, row),
        **_numbers(rows, row),
        "reason": record.get("reason"),
        "detail": record.get("detail"),
        "same_turns": _place(other, other_rows, twins[0]) if twins else None,
        "text": texts.opening(row)[:LINE_CHARACTERS],
    }


def _difference(a: Sequence[str], b: Sequence[str]) -> Iterator[str]:
    """The lines that differ, those of A after a minus and those of B after a plus, cropped to the difference."""
    places = [item for item in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes() if item[0] != "equal"]
    for _, a_start, a_stop, b_start, b_stop in places[:MAX_PLACES]:
        old, new = a[a_start:a_stop], b[b_start:b_stop]
        if len(old) == len(new) <= MAX_LINES:
            for one, other in zip(old, new, strict=True):
                start = _common(one, other) - BEFORE_CHARACTERS
                yield from (f"- {_crop(one, start)}", f"+ {_crop(other, start)}")
        else:
            yield from _block("-", old)
            yield from _block("+", new)
    if len(places) > MAX_PLACES:
        yield f"… and at {len(places) - MAX_PLACES} more places"


def _block(sign: str, lines: Sequence[str]) -> Iterator[str]:
    """The first of these lines, without blank ones unless all are blank."""
    chosen = [line for line in lines if line.strip()] or ["(blank line)"] * len(lines)
    yield from (f"{sign} {_crop(line, 0)}" for line in chosen[:MAX_LINES])
    if len(chosen) > MAX_LINES:
        yield f"{sign} … and {len(chosen) - MAX_LINES} more"


def _common(a: str, b: str) -> int:
    """The length of the common prefix."""
    return next((n for n, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))


def _crop(line: str, start: int) -> str:
    start = max(0, start)
    stop = start + LINE_CHARACTERS
    return f"{'…' if start else ''}{line[start:stop]}{'…' if stop < len(line) else ''}"


def _print_overview(result: Diff, console: Console) -> None:
    for side, shards in (("A", result.a), ("B", result.b)):
        name, digest = shards.manifest.name, shards.manifest.content_digest[:12]
        print_line(console, f"{side}  {name}  {shards.folder}  content {digest}", "bold")
    if result.is_same_build:
        print_line(console, "the same build: the manifests record the same bytes (to read all of them: sft verify)")
        return
    print_line(console, "settings and inputs that differ:" if result.settings else "no setting or input differs")
    for name, *values in result.settings:
        print_line(console, f"  {name}: {' → '.join(_short(value) for value in values)}")


def _short(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return value[:12]
    text = one_line(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= MAX_VALUE_CHARACTERS else f"{text[: MAX_VALUE_CHARACTERS - 1]}…"


def _print_rows(result: Diff, console: Console) -> None:
    table = _table("rows kept", "A", "B", "same", "other text", "other tokens", "lost", "gained")
    for name, item in result.sources.items():
        pairs = (len(item.text[0]), len(item.tokens[0]))
        _add(table, name, item.num_a, item.num_b, item.num_same, *pairs, len(item.lost), len(item.gained))
    console.print(table)
    print_line(console, "other text: other turns in the same row; other tokens: the same turns, but")
    print_line(console, "another system text, other tokens, loss or pieces")
    for name, item in result.sources.items():
        for what, reasons in (("lost from", item.lost_reasons), ("gained in", item.gained_reasons)):
            if reasons:
                counts = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
                where = "B" if what == "lost from" else "A"
                print_line(console, f"{what} {name}, in {where}: {counts}")
        if len(item.lost) and len(item.gained):
            shared, (num_a, num_b) = item.num_shared_digests, item.num_digests
            print_line(
                console, f"{name}, in whatever row: {shared:,} conversations in both, of {num_a:,} and {num_b:,}"
            )


def _print_counts(result: Diff, console: Console) -> None:
    table = _table("source", "tokens A", "tokens B", "loss A", "loss B", "to valid", "to train", "uses")
    for name, item in result.sources.items():
        sides = [shards.manifest.sources.get(name) for shards in (result.a, result.b)]
        tokens = [facts.tokens if facts else 0 for facts in sides]
        shares = [share_with_loss(facts) if facts else "" for facts in sides]
        moved = (item.num_to_valid, len(item.moved[0]) - item.num_to_valid, item.num_repacked)
        _add(table, name, *tokens, *shares, *moved)
    console.print(table)
    print_line(console, "loss: share of the tokens; to valid, to train: rows that changed sides")
    print_line(console, "uses: rows that are packed more or less often")
    drops = _table("dropped from", "reason", "A", "B")
    drops.columns[1].justify = "left"
    for name in result.sources:
        sides = [shards.manifest.sources.get(name) for shards in (result.a, result.b)]
        one, other = (facts.reasons if facts else {} for facts in sides)
        for reason in sorted({*one, *other}):
            if one.get(reason, 0) != other.get(reason, 0):
                _add(drops, name, reason, one.get(reason, 0), other.get(reason, 0))
    if drops.row_count:
        console.print(drops)
    else:
        print_line(console, "dropped for the same reasons, as many rows each")


def _print_examples(name: str, kinds: dict[str, list[Example]], console: Console) -> None:
    for kind, examples in kinds.items():
        console.rule(Text(visible(f"{name}: {kind}")), align="left")
        for item in examples:
            print_line(console, one_line(f"{item['file']}, row {item['row']}: {_remark(kind, item)}"), "bold")
            for line in item["difference"] if "difference" in item else [item["text"]]:
                print_line(console, f"  {one_line(line)}")


def _remark(kind: str, item: Example) -> str:
    if kind in ("lost", "gained"):
        twin = item["same_turns"]
        elsewhere = f"the same turns are in {twin['file']}, row {twin['row']}" if twin else NO_RECORD
        return ", ".join(filter(None, [item["reason"] or elsewhere, item["detail"]]))
    old, new = item["a"], item["b"]
    names = {"tokens": "tokens", "supervised_tokens": "with loss", "pieces": "pieces", "split": "split"}
    changes = [f"{name} {old[key]} → {new[key]}" for key, name in names.items() if old[key] != new[key]]
    same = [] if item["difference"] else ["the same text"]
    return ", ".join([*changes, *same])


def _table(first: str, *others: str) -> Table:
    table = Table(first, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in others:
        table.add_column(name, justify="right")
    return table


def _add(table: Table, *cells: str | int) -> None:
    table.add_row(*(cell(value if isinstance(value, str) else f"{value:,}") for value in cells))
