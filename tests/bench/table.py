"""What the benchmarks share: the facts about the machine, a table on the terminal, a JSON file."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def facts(*packages: str) -> dict[str, Any]:
    """Where and when figures are taken, and the versions of these packages; asked for before the first measurement."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }


def version(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def show(title: str, rows: Iterable[Mapping[str, Any]], **formats: str) -> None:
    """Print rows with equal keys as a table; a column has its format specification, or one by its type."""
    rows = list(rows)
    names = list(rows[0])
    lines = [[name.replace("_", " ") for name in names]]
    lines += [[_cell(row[name], formats.get(name)) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    is_text = [isinstance(rows[0][name], str) for name in names]
    print(f"\n{title}")
    for line in lines:
        cells = zip(line, widths, is_text, strict=True)
        print("  ".join(cell.ljust(width) if text else cell.rjust(width) for cell, width, text in cells).rstrip())


def write(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Write all figures as JSON, if a file was asked for."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=1) + "\n")


def _cell(value: Any, specification: str | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, str):
        return value
    return format(value, specification or ("," if isinstance(value, int) else ",.3f" if abs(value) < 10 else ",.1f"))


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
