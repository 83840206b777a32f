"""`sft chat`: talk to a checkpoint."""

import argparse
from pathlib import Path

from sft.cli.arguments import CHECKPOINT_HELP, Commands, add_print_config, is_printed, load_typed


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = commands.add("chat", run, "talk to a checkpoint", takes_settings=True)
    parser.add_argument("checkpoint", type=Path, help=CHECKPOINT_HELP)
    add_print_config(parser)


def run(options: argparse.Namespace) -> None:
    """Talk to a checkpoint."""
    from sft.config.inference import ChatConfig

    loaded = load_typed(ChatConfig, options)
    if is_printed(options, loaded):
        return
    from rich.console import Console

    from sft.inference.chat import talk

    talk(options.checkpoint, loaded.config, Console())
