"""Count the kept, skipped and dropped rows of a source, and stop the build if too many are dropped."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from sft.chat.conversation import DAMAGE, Reason
from sft.config.data import SourceConfig
from sft.data.build.chunk import ChunkFile
from sft.errors import DataError, listed

MAX_EXAMPLES = 3
CHOSEN = (Reason.LENGTH, Reason.REFUSAL, Reason.CONTAMINATED)
"""Drops that a setting asked for; they do not count against the recipe's max_drop_share."""


@dataclass
class SourceCounts:
    """The rows of one source.

    Invariant: rows_read = rows_skipped + rows_kept + rows_dropped.
    """

    rows_read: int = 0
    rows_skipped: int = 0
    """Left out by the source's weight or number of conversations."""
    rows_kept: int = 0
    """Rows with at least one document."""
    truncated: int = 0
    """Conversations cut at seq_len, without an end."""
    split: int = 0
    """Conversations cut into several pieces at turn boundaries."""
    changed: Counter[str] = field(default_factory=Counter)
    """Conversations that a stage changed, by stage."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Dropped rows, and dropped pieces of kept rows, by reason."""
    examples: list[str] = field(default_factory=list)
    """Place and reason of the first few dropped rows."""
    num_damaged: int = 0
    first_damaged: str = ""

    @property
    def rows_dropped(self) -> int:
        return self.rows_read - self.rows_skipped - self.rows_kept

    def add(self, chunk: ChunkFile) -> None:
        """Add the counts of a chunk."""
        rows, pieces = np.unique(chunk.documents()["row"], return_counts=True)
        self.rows_read += chunk.header["num_rows"]
        self.rows_skipped += chunk.header["num_skipped"]
        self.rows_kept += len(rows)
        self.split += int((pieces > 1).sum())
        self.truncated += chunk.header["num_truncated"]
        self.changed.update(chunk.header["changed"])
        for item in chunk.rejected():
            self.reasons[item.reason.value] += 1
            if len(self.examples) < MAX_EXAMPLES:
                self.examples.append(f"{chunk.file}, row {item.row}: {item.reason}, {item.detail[:80]}")
            if item.reason in DAMAGE:
                self.num_damaged += 1
                self.first_damaged = self.first_damaged or f"{chunk.file}, row {item.row}: {item.reason}, {item.detail}"


def check(name: str, source: SourceConfig, counts: SourceCounts) -> None:
    """Stop the build if more rows of a source are damaged or dropped than its recipe allows.

    Raises: DataError with the counts by reason.
    """
    used = counts.rows_kept + counts.rows_dropped
    dropped = counts.rows_dropped - sum(counts.reasons[reason] for reason in CHOSEN)
    reasons = ", ".join(f"{reason} {count}" for reason, count in counts.reasons.most_common())
    if used and counts.num_damaged / used > source.max_damaged_share:
        raise DataError(
            f"source {name}: {counts.num_damaged} of {used} rows are unreadable; first {counts.first_damaged}",
            hint=f"repair the file, or allow it with sources.{name}.max_damaged_share=…",
        )
    if used and not counts.rows_kept:
        raise DataError(f"source {name}: every row was dropped ({reasons})", hint="is it the right file?")
    if used and dropped / used > source.max_drop_share:
        raise DataError(
            f"source {name}: {dropped} of {used} rows were dropped ({reasons}), "
            f"more than its recipe expects (max_drop_share={source.max_drop_share}); "
            f"the first:{listed(counts.examples)}",
            hint=f"look at the rows, or allow it with sources.{name}.max_drop_share=…",
        )
