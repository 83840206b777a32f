"""`sft export`: write a Hugging Face folder."""

import argparse
from pathlib import Path

from sft.cli.arguments import CHECKPOINT_HELP, Commands, add_print_config, is_printed, load_typed


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    text = "write a Hugging Face folder that transformers, vLLM and lm-eval read"
    parser = commands.add("export", run, text, takes_settings=True)
    parser.add_argument("checkpoint", type=Path, help=CHECKPOINT_HELP)
    parser.add_argument("out", type=Path, help="new folder to write")
    add_print_config(parser)


def run(options: argparse.Namespace) -> None:
    """Write a Hugging Face folder."""
    from sft.config.inference import ExportConfig

    loaded = load_typed(ExportConfig, options)
    if is_printed(options, loaded):
        return
    from sft.export.hf_export import export
    from sft.inference.load import find

    export(find(options.checkpoint), options.out, loaded.config)
    print(f"written to {options.out} in {loaded.config.dtype}, and read back by transformers")
