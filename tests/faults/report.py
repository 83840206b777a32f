"""The table of a run, for people as Markdown and for programs as JSON lines."""

import json
import os
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.faults.case import Case
from tests.faults.cases import CASES
from tests.faults.oracle import BARRED, BROKEN, LOST, SLOW, UNFIRED, WRONG

FAMILIES = {
    "A": "Killed or told to stop",
    "B": "Damaged or foreign checkpoints",
    "C": "Data files and rows",
    "D": "Hostile text",
    "E": "Unsafe files",
    "F": "Numbers",
    "G": "RankGroup, hangs, slow ranks",
    "H": "Disks, writers, clocks",
    "I": "Slurm life",
    "J": "Secrets and trackers",
    "K": "Operator mistakes",
    "L": "Evaluation and export",
}
PACKAGES = ("torch", "numpy", "pyarrow", "safetensors", "transformers")
MARKDOWN, LINES = "RESULTS.md", "results.jsonl"


@dataclass(frozen=True)
class Result:
    """How one injection ended."""

    id: str
    n: int
    outcome: str
    detail: str
    seconds: float

    @property
    def is_bad(self) -> bool:
        return self.outcome in (LOST, WRONG, SLOW, UNFIRED, BROKEN)


def count(results: Iterable[Result]) -> dict[str, Any]:
    """How many injections ended how."""
    outcomes = Counter(result.outcome[0] if result.outcome[:2] in ("S", "R ") else result.outcome for result in results)
    return {
        "injections": outcomes.total(),
        "survived": outcomes["S"],
        "refused": outcomes["R"],
        "lost": outcomes[LOST],
        "wrong": outcomes[WRONG],
        "slow": outcomes[SLOW],
        "not_fired": outcomes[UNFIRED] + outcomes[BROKEN],
        "barred": outcomes[BARRED],
    }


def facts() -> dict[str, Any]:
    """When, where and with what a run was made."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def write(folder: Path, results: Sequence[Result], seconds: float) -> None:
    """Write both forms into the folder."""
    header = {**facts(), "minutes": round(seconds / 60, 1), "kinds": _num_tried(results), **count(results)}
    lines = [header, *(_line(case, results) for case in CASES.values())]
    (folder / LINES).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    (folder / MARKDOWN).write_text(markdown(header, results))


def markdown(header: dict[str, Any], results: Sequence[Result]) -> str:
    """The table by family and kind."""
    versions = ", ".join(f"{name} {number}" for name, number in header["versions"].items())
    parts = [
        "# What the fault suite found",
        "",
        summary(results),
        "",
        f"{header['date']}, commit {header['commit']}, {header['machine']}; {versions}; {header['minutes']} minutes.",
        "Made by `make faults`; what the columns mean is in README.md.",
        "",
    ]
    for letter, name in FAMILIES.items():
        cases = [case for case in CASES.values() if case.family == letter]
        if cases:
            parts += [f"## {letter}. {name}", "", *_table(cases, results), ""]
    bad = [f"- {it.id} {it.n}: {it.outcome}: {gist(it)}" for it in results if it.is_bad]
    return "\n".join([*parts, *(["## Not as promised", "", *bad, ""] if bad else [])])


def gist(result: Result) -> str:
    """The begin of what is said of a result, without the paths of this machine."""
    return re.sub(r"/[^\s:]+", "…", result.detail.partition("\n")[0])[:120].replace("|", "/")


def summary(results: Sequence[Result]) -> str:
    """The one line that a README quotes."""
    it = count(results)
    return (
        f"**{_num_tried(results)} kinds of fault, {it['injections']} injections: {it['survived']} survived, "
        f"{it['refused']} refused as designed, {it['lost']} lost, {it['wrong']} wrong**, {it['slow']} too slow, "
        f"{it['not_fired']} that did not fire, {it['barred']} that this machine bars."
    )


def _table(cases: Sequence[Case], results: Sequence[Result]) -> list[str]:
    rows = [
        "| kind | fault | promise | injections | survived | refused | lost | wrong | slow |",
        "|---|---|---|" + "---:|" * 6,
    ]
    for case in cases:
        it = count(result for result in results if result.id == case.id)
        text = f"{case.text} — {case.reason}" if case.reason else case.text
        numbers = [it[name] for name in ("injections", "survived", "refused", "lost", "wrong", "slow")]
        rows.append("| " + " | ".join(map(str, (case.id, text, case.promise, *numbers))) + " |")
    return rows


def _line(case: Case, results: Sequence[Result]) -> dict[str, Any]:
    mine = [result for result in results if result.id == case.id]
    line: dict[str, Any] = {
        "id": case.id,
        "text": case.text,
        "promise": case.promise,
        "where": case.where,
        **count(mine),
    }
    if case.reason:
        line["reason"] = case.reason
    if mine:
        line["slowest_s"] = max(result.seconds for result in mine)
    if bad := [[result.n, result.outcome] for result in mine if result.is_bad]:
        line["bad"] = bad
    return line


def _num_tried(results: Iterable[Result]) -> int:
    return len({result.id for result in results})


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
