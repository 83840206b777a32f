"""`sft diff`: compare two builds."""

import argparse
from pathlib import Path

from sft.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = commands.add("diff", run, "compare two builds: settings, rows, tokens, dropped rows")
    parser.add_argument("a", type=Path, metavar="A", help="folder that sft build made")
    parser.add_argument("b", type=Path, metavar="B", help="folder to compare it with")
    parser.add_argument(
        "--examples", type=int, default=3, metavar="N", help="show up to N rows of each source and kind of difference"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole result to this file")


def run(options: argparse.Namespace) -> None:
    """Compare two builds."""
    from rich.console import Console

    from sft.data.inspect.show_diff import show_diff

    show_diff(options.a, options.b, Console(), num_examples=options.examples, json_file=options.json)
