"""`sft fetch`: download a mixture's raw files from the hub and pin them."""

import argparse
from pathlib import Path

from sft.cli.arguments import MIXTURE_HELP, Commands, add_print_config, is_printed, mixture_file


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    text = "download a mixture's raw files from the hub and pin them"
    parser = commands.add("fetch", run, text, takes_settings=True)
    parser.add_argument("mixture", type=Path, help=MIXTURE_HELP)
    parser.add_argument(
        "--update", action="store_true", help="download what the revisions name now, not the pinned commits"
    )
    add_print_config(parser)


def run(options: argparse.Namespace) -> None:
    """Download raw files and pin them."""
    from sft.data.sources.recipe import load_for_fetch

    loaded = load_for_fetch(mixture_file(options.mixture), options.settings)
    if is_printed(options, loaded):
        return
    from sft.data.sources.fetch import fetch

    fetch(loaded.config, update=options.update)
