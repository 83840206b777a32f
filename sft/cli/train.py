"""`sft train`: train, or resume if the run folder holds this run."""

import argparse
from pathlib import Path

from sft.cli.arguments import Commands, add_print_config, config_file, is_printed


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    text = "train a model, or resume if the run folder holds this run"
    parser = commands.add("train", run, text, takes_settings=True)
    parser.add_argument("config", type=Path, help="file of settings, such as configs/tiny_cpu.yaml, or a bundled name")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--dry-run", action="store_true", help="take one step on the largest packs and show what the run needs"
    )
    what.add_argument("--print-run-folder", action="store_true", help="print the run folder and nothing else")
    add_print_config(parser)


def run(options: argparse.Namespace) -> None:
    """Train, or resume."""
    from sft.config.loading import load, read_arguments
    from sft.config.train import TrainConfig
    from sft.config.yaml_text import read_yaml

    loaded = load(TrainConfig, [read_yaml(config_file(options.config)), read_arguments(options.settings)])
    if is_printed(options, loaded):
        return
    if options.print_run_folder:
        print(loaded.config.out)
        return
    if options.dry_run:
        from sft.train.dry_run import dry_run

        dry_run(loaded.config)
        return
    from sft.train.loop import train

    train(loaded.config)
