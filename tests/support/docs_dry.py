"""What the commands of a page's sh blocks would be called with, found without running any of them.

The shell itself reads the block, with a PATH on which nothing lies: every command that it does not know by itself is
written down instead. Variables, arrays and `$(…)` mean what they will mean to a reader who copies the block.
"""

import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

from sft.cli.main import main
from tests.support.docs import ROOT, Block

REASON = re.compile(r"^# not run by the tests: \S.*")
"""The first line of a sh block: readers see why its output is not shown, and a test why it is not run."""
NOTE = """command_not_found_handle() { printf '%s\\0' "$#" "$@" >> calls; echo 1; }
"""
PRINTS_CONFIG = ("fetch", "build", "train", "eval", "chat", "export")
"""Commands that take settings: they are called with --print-config, which reads files and settings and stops."""
OF_SCRIPTS = {
    "build_data.sbatch": ("build",),
    "build_data_parts.sbatch": ("build", "--part", "1/8"),
    "train.sbatch": ("train",),
    "evaluate.sbatch": ("eval",),
}
"""What a batch script calls `sft` with, before its own arguments."""
KNOWN = ("scancel", "scontrol", "sacct", "touch", "git", "cd", "pre-commit")
OURS = re.compile(r"(configs|data_recipes|slurm|tests)/[\w./-]+")


def calls(block: Block, folder: Path) -> list[list[str]]:
    """The words of every command in the block, in order, as the shell reads them in an empty folder.

    Raises: ValueError if the shell cannot.
    """
    text = re.sub(r"(?:\.venv/bin/)(\w)", r"\1", block.text)
    options = ["--norc", "--noprofile"]
    done = subprocess.run(
        ["/bin/bash", *options, "-c", NOTE + text],
        cwd=folder,
        env={"PATH": "/nowhere", "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.stderr:
        raise ValueError(f"{block}: {done.stderr}")
    return _split((folder / "calls").read_text().split("\0")[:-1])


def _split(words: list[str]) -> list[list[str]]:
    found = []
    while words:
        end = int(words[0]) + 1
        found.append(words[1:end])
        words = words[end:]
    return found


def problems(words: list[str]) -> list[str]:
    """What is wrong with a command, in sentences; files of the project that it names must exist."""
    name, rest = words[0], words[1:]
    missing = [word for word in rest if OURS.fullmatch(word) and not (ROOT / word).exists()]
    found = [f"{word}: no such file" for word in missing]
    if name in CHECKS:
        return found + CHECKS[name](rest)
    return found if name in KNOWN else [*found, f"{name}: not a command that tests/support/docs_dry.py knows"]


def _sft(words: list[str]) -> list[str]:
    """`sft` itself decides, with its own parser and schema."""
    show = "--print-config" if words[0] in PRINTS_CONFIG else "--help"
    try:
        code = main([*words, show])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    return [f"sft {' '.join(words)}: exit code {code}"] if code else []


def _torchrun(words: list[str]) -> list[str]:
    return _sft(words[words.index("-m") + 2 :])


def _sbatch(words: list[str]) -> list[str]:
    script = next((word for word in words if word.endswith(".sbatch")), "")
    if Path(script).name not in OF_SCRIPTS:
        return [f"sbatch {' '.join(words)}: names no batch script"]
    return _sft([*OF_SCRIPTS[Path(script).name], *words[words.index(script) + 1 :]])


def _make(words: list[str]) -> list[str]:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return [f"make {word}: no such target" for word in words if "=" not in word and word not in targets]


def _python(words: list[str]) -> list[str]:
    if words[:2] == ["-m", "pytest"]:
        return []
    if words[0] == "-m":
        place = words[1].replace(".", "/")
        words = [f"{place}.py" if (ROOT / f"{place}.py").is_file() else f"{place}/__main__.py"]
    return [] if (ROOT / words[0]).is_file() else [f"python {words[0]}: no such file"]


def _pip(words: list[str]) -> list[str]:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    extras = [extra for word in words for group in re.findall(r"\[([\w,]+)\]", word) for extra in group.split(",")]
    return [f"pip: no extra {extra}" for extra in extras if extra not in known]


CHECKS: dict[str, Callable[[list[str]], list[str]]] = {
    "sft": _sft,
    "torchrun": _torchrun,
    "sbatch": _sbatch,
    "make": _make,
    "python": _python,
    "pip": _pip,
}
