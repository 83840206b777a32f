"""Every row is counted once, and a source that no longer fits its recipe stops the build."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sft.chat.conversation import Reason
from sft.config.data import SourceConfig
from sft.data.build.chunk import DOCUMENT_FIELDS, ChunkFile, ChunkResult, Rejected, write_chunk
from sft.data.build.counts import SourceCounts, check
from sft.data.dedup.minhash import NUM_BANDS
from sft.errors import DataError

CHOSEN = (Reason.LENGTH, Reason.REFUSAL, Reason.CONTAMINATED)
"""What only a setting that somebody chose drops."""
SOURCE = SourceConfig("Talk", "someone/talk", ("talk*.jsonl",), "CC0-1.0", "Someone, 2023", "card")


def result(
    kept: list[int],
    dropped: list[tuple[int, Reason]],
    *,
    skipped: int = 0,
    rows: int | None = None,
    truncated: int = 0,
    changed: dict[str, int] | None = None,
) -> ChunkResult:
    """A chunk with one document per entry of `kept`, the row's number."""
    documents = np.zeros(len(kept), DOCUMENT_FIELDS)
    documents["row"] = kept
    return ChunkResult(
        source="talk",
        file="t.jsonl",
        num_rows=len(set(kept)) + len(dropped) + skipped if rows is None else rows,
        num_skipped=skipped,
        num_truncated=truncated,
        checked_share=1.0,
        changed={} if changed is None else changed,
        rejected=[Rejected(row, None, reason, "why", "excerpt") for row, reason in dropped],
        documents=documents,
        ids=np.zeros(0, np.uint16),
        loss_mask=np.zeros(0, np.uint8),
        turn_starts=np.zeros(0, np.uint16),
        bands=np.zeros((0, NUM_BANDS), np.uint64),
    )


Count = Callable[..., SourceCounts]


@pytest.fixture
def counted(tmp_path: Path) -> Count:
    """Counts chunks as a build does: from their files."""

    def counted(*results: ChunkResult) -> SourceCounts:
        counts = SourceCounts()
        for item in results:
            write_chunk(tmp_path / "chunk", item)
            chunk = ChunkFile.open(tmp_path / "chunk")
            assert chunk is not None
            counts.add(chunk)
        return counts

    return counted


def test_read_is_skipped_and_kept_and_dropped(counted: Count) -> None:
    counts = counted(
        result([0, 1, 1, 1], [(2, Reason.NO_EXCHANGE)], skipped=4, truncated=1, changed={"repair": 2}),
        result([0, 2, 2], [(1, Reason.INVALID_JSON), (3, Reason.NO_EXCHANGE)], truncated=1, changed={"repair": 1}),
    )
    assert (counts.rows_read, counts.rows_skipped, counts.rows_kept, counts.rows_dropped) == (11, 4, 4, 3)
    assert (counts.split, counts.truncated, counts.num_damaged) == (2, 2, 1)
    assert counts.reasons == {"no_exchange": 2, "invalid_json": 1}
    assert counts.changed == {"repair": 3}
    assert counts.first_damaged == "t.jsonl, row 1: invalid_json, why"


def test_a_row_of_which_only_a_piece_is_dropped_is_kept(counted: Count) -> None:
    counts = counted(result([0, 0], [(0, Reason.TOO_LONG)], rows=1))
    assert (counts.rows_kept, counts.rows_dropped, counts.reasons["too_long"]) == (1, 0, 1)


OK = [(number, Reason.NO_EXCHANGE) for number in range(1000)]
DAMAGED = [(number, Reason.INVALID_JSON) for number in range(1000)]
CHECKED: list[tuple[str, ChunkResult, dict[str, Any], str | None]] = [
    ("all kept", result(list(range(10)), []), {}, None),
    ("half dropped", result(list(range(10)), OK[:10]), {}, None),
    ("more than half dropped", result(list(range(10)), OK[:11]), {}, "11 of 21 rows were dropped.*max_drop_share=0.5"),
    ("ceiling raised", result(list(range(10)), OK[:30]), {"max_drop_share": 0.8}, None),
    ("ceiling of the recipe", result(list(range(96)), OK[:4]), {"max_drop_share": 0.03}, "4 of 100 rows were dropped"),
    ("all dropped", result([], OK[:3]), {"max_drop_share": 1.0}, "every row was dropped \\(no_exchange 3\\)"),
    ("one of 1000 damaged", result(list(range(999)), DAMAGED[:1]), {}, None),
    (
        "one of 999 damaged",
        result(list(range(998)), DAMAGED[:1]),
        {},
        "1 of 999 rows are unreadable; first t.jsonl, row 0",
    ),
    ("damage allowed", result(list(range(9)), DAMAGED[:1]), {"max_damaged_share": 0.2}, None),
    ("skipped rows do not dilute", result([1], OK[:2], skipped=1000), {}, "2 of 3 rows were dropped"),
    *[
        (f"all but one dropped as {reason}", result([1], [(n, reason) for n in range(2, 99)]), {}, None)
        for reason in CHOSEN
    ],
    ("chosen drops do not hide others", result([0], [(1, Reason.LENGTH), *OK[2:5]]), {}, "3 of 5 rows were dropped"),
    ("chosen drops do dilute", result([0], [(9, Reason.REFUSAL), *OK[1:2]]), {"max_drop_share": 0.34}, None),
    ("all chosen away", result([], [(1, Reason.CONTAMINATED)]), {}, "every row was dropped \\(contaminated 1\\)"),
    ("all skipped", result([], [], skipped=10), {}, None),
    ("empty", result([], []), {}, None),
]


@pytest.mark.parametrize(("_", "item", "changes", "complaint"), CHECKED, ids=[name for name, *_ in CHECKED])
def test_a_source_over_its_ceiling_is_refused(
    _: str, item: ChunkResult, changes: dict[str, Any], complaint: str | None, counted: Count
) -> None:
    source = replace(SOURCE, **changes)
    if complaint is None:
        check("talk", source, counted(item))
        return
    with pytest.raises(DataError, match=complaint) as caught:
        check("talk", source, counted(item))
    assert "source talk" in str(caught.value)


@pytest.mark.parametrize(
    ("item", "setting"),
    [
        (result([1], OK[:5]), "sources.talk.max_drop_share=…"),
        (result([1], DAMAGED[:5]), "sources.talk.max_damaged_share=…"),
    ],
)
def test_the_hint_names_the_setting_that_allows_it(item: ChunkResult, setting: str, counted: Count) -> None:
    with pytest.raises(DataError, match=setting):
        check("talk", SOURCE, counted(item))


def test_the_first_few_dropped_rows_are_shown(counted: Count) -> None:
    counts = counted(result([], OK[:2]), result([9], [(7, Reason.EMPTY_USER), (8, Reason.NO_EXCHANGE)]))
    with pytest.raises(DataError) as caught:
        check("talk", SOURCE, counts)
    shown = [line for line in str(caught.value).splitlines() if line.startswith("  - ")]
    assert shown == [
        "  - t.jsonl, row 0: no_exchange, why",
        "  - t.jsonl, row 1: no_exchange, why",
        "  - t.jsonl, row 7: empty_user, why",
    ]
