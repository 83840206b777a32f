"""`sft build`: turn raw files into packed shards, or do one part's share of that work."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sft.cli.arguments import MIXTURE_HELP, Commands, add_print_config, folder_of_rows, is_printed, mixture_file

if TYPE_CHECKING:  # otherwise imported where they are needed: `sft --help` reads this file too
    from sft.config.data import BuildConfig
    from sft.config.loading import Resolved


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = commands.add("build", run, "turn raw files into packed shards", takes_settings=True)
    parser.add_argument("mixture", type=Path, help=MIXTURE_HELP)
    parser.add_argument("--part", metavar="I/N", help="do the I-th of N shares of the work, for a later build")
    add_print_config(parser)


def run(options: argparse.Namespace) -> None:
    """Build the shards, or one part's share of the work."""
    loaded, recipes = resolve(options.mixture, options.settings)
    if is_printed(options, loaded):
        return
    from rich.console import Console

    from sft.data.build.build import Part, build, build_part
    from sft.data.inspect.show import overview

    if options.part is not None:
        count = build_part(loaded.config, recipes, Part.parse(options.part))
        done = "built already" if count is None else f"chunks done: {count}; sft build without --part merges all"
        print(f"part {options.part}: {done}")
        return
    shards = build(loaded.config, recipes)
    overview(shards.folder, Console())


def resolve(mixture: Path, arguments: Sequence[str]) -> "tuple[Resolved[BuildConfig], Path]":
    """The settings of a build and the folder of its recipes."""
    from sft.data.sources.recipe import load_mixture, recipes_dir

    path = mixture_file(mixture)
    loaded = load_mixture(path, arguments)
    rows = folder_of_rows(loaded.config.sources_dir)
    return replace(loaded, config=replace(loaded.config, sources_dir=rows)), recipes_dir(path)
