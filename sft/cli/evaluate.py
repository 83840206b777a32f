"""`sft eval`: measure checkpoints."""

import argparse
from pathlib import Path

from sft.cli.arguments import CHECKPOINT_HELP, Commands, add_print_config, is_printed, load_typed


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    text = "measure held-out loss per source and answer fixed prompts"
    parser = commands.add("eval", run, text, takes_settings=True)
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    add_print_config(parser)


def run(options: argparse.Namespace) -> None:
    """Measure checkpoints."""
    from sft.config.inference import EvalConfig

    loaded = load_typed(EvalConfig, options)
    if is_printed(options, loaded):
        return
    from rich.console import Console

    from sft.evals.evaluate import evaluate

    evaluate(options.checkpoints, loaded.config, Console())
