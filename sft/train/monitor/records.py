"""The records of a run: their kinds, how metrics.jsonl is read, and which of them a later attempt has superseded."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft.storage.atomic import write_text

Record = dict[str, Any]
STEP, EVAL, SAVE, START, GATE, STOP = "step", "eval", "save", "start", "gate", "stop"
SCALE, SPIKE = "scale", "spike"


def read_records(path: Path) -> list[Record]:
    """The records of a metrics file; half-written lines are left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "kind" in record and "step" in record:
            records.append(record)
    return records


def supersede(path: Path, records: Sequence[Record], step: int) -> None:
    """Mark all records past `step`: the run resumes from there and will write them again."""
    past = [record for record in records if record["step"] > step]
    for record in past:
        record["superseded"] = True
    # Rewriting also drops a half-written last line, which would swallow the next record.
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))


def as_json(value: Any) -> Any:
    """The value with numbers that are not finite as text, since JSON cannot represent them."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value
