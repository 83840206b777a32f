"""The commands in the project's Markdown: console blocks are run and compared, sh blocks are read.

A `console` block holds `$ command` lines, each followed by what it prints; `…` on a line of its own stands for lines
left out. What differs between machines and moments is masked before the comparison (MASKS, PROGRESS). After a change
of what a command prints, `python -m tests.support.docs` writes the new outputs into the pages.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEMO = "sft demo"
SKIPPED = "…"
COMMAND_LIMIT_S = 300

FENCE = re.compile(r"^```(?P<language>\S*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)

PROGRESS = re.compile(r"^[\w ]+: \d+/\d+ .*· \d+:\d\d:\d\d left$")
"""Such a line is printed every ten seconds: how many there are depends on the machine. They are left out."""
MASKS = (
    (re.compile(r"(?<!\S)/(?:tmp|home|root|work|usr|opt|var)/\S*"), "PATH"),
    (re.compile(r"\b[0-9a-f]{12,64}\b"), "DIGEST"),
    (re.compile(r"\b\d+:\d\d:\d\d\b"), "TIME"),
    (re.compile(r"[\d,.]+ (tok/s|tokens/s|GB|GiB|MB|s)\b"), r"# \1"),
    # Losses and what follows from them, which differ in the last digits between processors.
    (re.compile(r"\bloss \d+\.\d+"), "loss #"),
    (re.compile(r"(?<![\d.,])[\d,]+\.\d{4}\b"), "#"),
    (re.compile(r"(?<![\d.,])[\d,]+\.\d\d(?![\d%])"), "#"),
    (re.compile(r"(?<![\d.,])\d+\.\d\d%"), "#%"),
    (re.compile(r"\S+ \((\d\.\de[-+]\d\d)\)"), r"# (\1)"),
    # Where a signal or a STOP file met the run.
    (re.compile(r"\bafter step \d+"), "after step #"),
    (re.compile(r"(?<![\d.])\d+\.\d+\.\d+[\w.+]*"), "VERSION"),
    # The width of a table follows what is in it.
    (re.compile(r"([━─═]){2,}"), r"\1"),
    (re.compile(r"[ \t]+"), " "),
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `start` and `end` are where its text lies in the file."""

    page: Path
    language: str
    text: str
    start: int
    end: int

    @property
    def line(self) -> int:
        return self.page.read_text(encoding="utf-8")[: self.start].count("\n")

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A line that begins with `$ ` and what the page says it prints."""

    words: str
    expected: list[str] = field(default_factory=list)


def pages() -> list[Path]:
    """Every Markdown page of the project."""
    folders = ("sft", "data_recipes", "configs", "slurm", "tests", ".github")
    inside = [page for folder in folders for page in (ROOT / folder).rglob("*.md")]
    return sorted([*ROOT.glob("*.md"), *inside])


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    for match in FENCE.finditer(page.read_text(encoding="utf-8")):
        yield Block(page, match["language"], match["text"], match.start("text"), match.end("text"))


def commands(block: Block) -> list[Command]:
    """The commands of a console block.

    Raises: ValueError if it begins with anything else.
    """
    found: list[Command] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append(Command(line.removeprefix("$ ")))
        elif found:
            found[-1].expected.append(line)
        else:
            raise ValueError(f"{block}: expected a line that begins with `$ `, got {line!r}")
    return found


def masked(lines: list[str]) -> list[str]:
    """The lines with everything that may differ replaced, and progress left out."""
    kept = []
    for line in lines:
        if not PROGRESS.match(line.strip()):
            for pattern, replacement in MASKS:
                line = pattern.sub(replacement, line)
            kept.append(line.strip())
    while kept and not kept[-1]:
        kept.pop()
    return kept


def fitted(expected: list[str], printed: list[str]) -> list[str]:
    """What the page should say: `printed`, shortened where `expected` leaves lines out.

    The lines before the first `…` are as many as they were, those behind the last one too; lines between two of them
    are found by the first of them. Raises: ValueError if it is not printed any more.
    """
    before, *others = _parts(expected)
    if not others:
        return printed
    result, place = printed[: len(before)], len(before)
    for part in others[:-1]:
        place = _find(part[0], printed, place)
        result += [SKIPPED, *printed[place : place + len(part)]]
        place += len(part)
    last = others[-1]
    return [*result, SKIPPED, *printed[max(place, len(printed) - len(last)) :]] if last else [*result, SKIPPED]


def _parts(lines: list[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for line in lines:
        if line == SKIPPED:
            parts.append([])
        else:
            parts[-1].append(line)
    return parts


def _find(line: str, printed: list[str], start: int) -> int:
    wanted = masked([line])
    for place in range(start, len(printed)):
        if masked([printed[place]]) == wanted:
            return place
    raise ValueError(f"not printed any more: {line}")


class Terminal:
    """Runs the commands of one page, in order, in a folder of its own that holds what `sft demo` made."""

    def __init__(self, folder: Path, printed_by_demo: list[str]) -> None:
        self._folder, self._printed = folder, {DEMO: printed_by_demo}

    def run(self, command: str) -> list[str]:
        """The lines that a command prints, on both streams."""
        if command not in self._printed:
            return run_in(self._folder, command)
        return self._printed[command]


def run_in(folder: Path, command: str, *, check: bool = False) -> list[str]:
    """Run a shell command with `sft` on its path; its output, both streams in the order of time."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=_environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=COMMAND_LIMIT_S,
        check=check,
    )
    return [line.rstrip() for line in done.stdout.splitlines()]


def _environment(folder: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("HOME", "TMPDIR") if name in os.environ}
    return {
        **kept,
        "PATH": f"{folder / '.bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
        "LC_ALL": "C.UTF-8",
    }


def make_demo_folder(folder: Path) -> list[str]:
    """Lay out the project's data and configs in `folder`, run the demo there, and return what it printed."""
    for name in ("data_recipes", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / ".bin").mkdir()
    start = folder / ".bin/sft"
    start.write_text(f'#!/bin/sh\nexec {sys.executable} -m sft "$@"\n')
    start.chmod(0o755)
    return run_in(folder, DEMO, check=True)


def updated(page: Path, terminal: Terminal) -> str:
    """The page's text with the outputs that differ replaced by what the commands print now."""
    text, shift = page.read_text(encoding="utf-8"), 0
    for block in blocks(page):
        if block.language == "console":
            new = "".join(_updated(command, terminal.run(command.words)) for command in commands(block))
            text = text[: block.start + shift] + new + text[block.end + shift :]
            shift += len(new) - len(block.text)
    return text


def _updated(command: Command, printed: list[str]) -> str:
    lines = fitted(command.expected, printed)
    same = masked(lines) == masked(command.expected)
    return "".join(f"{line}\n" for line in (f"$ {command.words}", *(command.expected if same else lines)))


def main() -> None:
    """Refresh all pages, or those that are named."""
    named = [Path(word).resolve() for word in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as root:
        printed = make_demo_folder(Path(root) / "demo")
        for number, page in enumerate(named or pages()):
            folder = Path(root) / str(number)
            shutil.copytree(Path(root) / "demo", folder)
            page.write_text(updated(page, Terminal(folder, printed)), encoding="utf-8")
            print(page.relative_to(ROOT), flush=True)
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
