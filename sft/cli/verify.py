"""`sft verify`: check shards, a checkpoint, or all checkpoints of a run."""

import argparse
from pathlib import Path

from sft.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    text = "check shards or checkpoints: hashes, schema and which tokens carry loss"
    parser = commands.add("verify", run, text)
    parser.add_argument("folder", type=Path, help="shards, a checkpoint, or a run folder (all its checkpoints)")


def run(options: argparse.Namespace) -> None:
    """Check the shards, checkpoint or run in the folder."""
    from sft.train.run_layout import STATE_FILE, RunLayout

    folder, is_run = options.folder, RunLayout(options.folder).checkpoints.is_dir()
    if is_run or (folder / STATE_FILE).is_file():
        from sft.train.verify_run import verify_checkpoint, verify_run

        for sentence in verify_run(folder) if is_run else [verify_checkpoint(folder)]:
            print(sentence)
        return
    from sft.data.inspect.verify import verify

    print(f"{folder}: {verify(folder)}")
