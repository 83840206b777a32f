"""`sft inspect`: show packs, a row, a token's origin or a step, or write a report."""

import argparse
from pathlib import Path

from sft.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    text = "show packs: roles, loss, documents and the raw rows they came from"
    parser = commands.add("inspect", run, text)
    parser.add_argument("shards", type=Path, help="folder that sft build made; with --step a run folder")
    parser.add_argument("--split", default="train", help="train or valid")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--pack", type=int, help="show this pack, counted from 0")
    what.add_argument("--row", metavar="SOURCE:FILE:ROW", help="show what became of this raw row")
    what.add_argument("--step", type=int, help="show what this step of a run trains on, counted from 1")
    parser.add_argument("--trace", type=int, metavar="TOKEN", help="show where this token of the pack came from")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a report in which packs can be browsed")
    parser.add_argument("--sources", type=Path, metavar="FOLDER", help="raw files, to show the raw row itself")
    parser.add_argument("--full", action="store_true", help="with --step: list every row")


def run(options: argparse.Namespace) -> None:
    """Show what the options ask for."""
    from rich.console import Console

    from sft.data.inspect import show

    console = Console()
    if options.html is not None:
        from sft.data.report.html import write_report

        packs = [] if options.pack is None else [(options.split, options.pack)]
        write_report(options.shards, options.html, packs=packs)
        print(f"written to {options.html}: open it in a browser")
    elif options.step is not None:
        from sft.train.inspect_step import show_step

        show_step(options.shards, options.step, console, full=options.full)
    elif options.row is not None:
        show.trace_row(options.shards, options.row, console, options.sources)
    elif options.trace is not None:
        show.trace(options.shards, options.split, options.pack or 0, options.trace, console, options.sources)
    elif options.pack is not None:
        show.show_pack(options.shards, options.split, options.pack, console)
    else:
        show.overview(options.shards, console)
