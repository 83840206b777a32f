"""The `sft` command: what it offers; what each command does stands in commands.py."""

import argparse
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from sft.cli import commands
from sft.console.streams import TERMINATED, command_environment
from sft.errors import ConfigError, SftError
from sft.version import VERSION

EXIT_CODES = (
    "exit codes: 0 done, 65 bad data, 70 numerics, 71 peer or cluster, 74 storage, "
    "75 stopped on purpose (run again), 78 bad config, 1 bug"
)
MIXTURE_HELP = "such as data_recipes/mixtures/stablelm_tuned_alpha.yaml"
CHECKPOINT_HELP = "checkpoint, run folder (its newest checkpoint) or exported folder"
DOCTOR_TEXT = "what is installed, what will run here, what is missing"
DOCTOR_HELP = "prove on these weights that attention kernel and precision compute what they should"
SETTINGS_HELP = "key=value settings win over the file, such as out=runs/first optimizer.lr=1e-5"
# A path may hold a `=` as well, but only behind a slash.
SETTING = re.compile(r"[A-Za-z_][\w.-]*=")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code says how it ended (see sft/errors.py)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with command_environment():
        return _run(words)


def _run(words: list[str]) -> int:
    try:
        options = _parse(words)
        options.run(options)
    except SftError as error:
        print(f"sft: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("sft: interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:
        if stop.code == TERMINATED:
            print("sft: terminated; nothing half-written is left, and the same command goes on", file=sys.stderr)
        raise
    except Exception:  # noqa: BLE001 - shown here, where secrets in its text are hidden
        traceback.print_exc()
        return SftError.exit_code
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, hint=f"{self.prog} --help")


def _parse(words: list[str]) -> argparse.Namespace:
    """Options and, apart from them, the settings, which may stand anywhere on the line."""
    settings = [word for word in words if SETTING.match(word)]
    options = _parser().parse_args([word for word in words if not SETTING.match(word)])
    if settings and not options.takes_settings:
        raise ConfigError(f"sft {options.command} takes no settings, got {settings[0]}")
    options.settings = settings
    return options


def _parser() -> _Parser:
    parser = _Parser(
        prog="sft", description="Supervised fine-tuning that reproduces StableLM-Tuned-Alpha.", epilog=EXIT_CODES
    )
    parser.add_argument("--version", action="version", version=f"sft {VERSION}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str, *, settings: bool) -> _Parser:
        epilog = SETTINGS_HELP if settings else None
        added: _Parser = subparsers.add_parser(name, help=text, description=text, epilog=epilog)
        added.set_defaults(run=run, takes_settings=settings)
        if settings:
            added.add_argument("--print-config", action="store_true", help="show the resolved settings and stop")
        return added

    demo = command(
        "demo", commands.run_demo, "the whole pipeline on bundled samples, with a tiny model", settings=False
    )
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="new folder for everything that it makes")
    _add_data_commands(command)
    _add_model_commands(command)
    return parser


def _add_data_commands(command: Callable[..., _Parser]) -> None:
    fetch = command(
        "fetch", commands.run_fetch, "download a mixture's raw files from the hub and pin them", settings=True
    )
    fetch.add_argument("mixture", type=Path, help=MIXTURE_HELP)
    fetch.add_argument("--update", action="store_true", help="take what the revisions name now, not the locked commits")

    build = command("build", commands.run_build, "raw files to packed shards", settings=True)
    build.add_argument("mixture", type=Path, help=MIXTURE_HELP)
    build.add_argument("--part", metavar="I/N", help="make only the I-th of N shares of the work, for a later build")

    inspect = command("inspect", commands.run_inspect, "look at packs: roles, loss, documents, lineage", settings=False)
    inspect.add_argument("shards", type=Path, help="folder made by sft build; with --step a run folder")
    inspect.add_argument("--split", default="train", help="train or valid")
    what = inspect.add_mutually_exclusive_group()
    what.add_argument("--pack", type=int, help="show this pack, counted from 0")
    what.add_argument("--row", metavar="SOURCE:FILE:ROW", help="show what became of this raw row")
    what.add_argument("--step", type=int, help="show what this step of a run trains on, counted from 1")
    inspect.add_argument("--trace", type=int, metavar="TOKEN", help="show where this token of the pack came from")
    inspect.add_argument(
        "--html", type=Path, metavar="FILE", help="write a report with a browser of packs to this file"
    )
    inspect.add_argument("--sources", type=Path, metavar="FOLDER", help="raw files, to show the raw row itself")
    inspect.add_argument("--full", action="store_true", help="with --step: list every row")

    diff = command(
        "diff", commands.run_diff, "what differs between two builds: settings, rows, tokens, drops", settings=False
    )
    diff.add_argument("a", type=Path, metavar="A", help="folder made by sft build")
    diff.add_argument("b", type=Path, metavar="B", help="another one")
    diff.add_argument("--examples", type=int, default=3, metavar="N", help="show up to N rows of each source and kind")
    diff.add_argument("--json", type=Path, metavar="FILE", help="write the whole result to this file")

    verify = command("verify", commands.run_verify, "hashes, schema and supervision contract", settings=False)
    verify.add_argument("folder", type=Path, help="shards, a checkpoint, or a run folder (all its checkpoints)")


def _add_model_commands(command: Callable[..., _Parser]) -> None:
    doctor = command("doctor", commands.run_doctor, DOCTOR_TEXT, settings=False)
    doctor.add_argument("--model", type=Path, metavar="FOLDER|CONFIG", help=DOCTOR_HELP)
    doctor.add_argument("--shards", type=Path, help="take a pack of these; without, the config's or random tokens")
    doctor.set_defaults(takes_settings=True)

    train = command("train", commands.run_train, "train, or go on if the run folder holds this run", settings=True)
    train.add_argument("config", type=Path, help="such as configs/tiny_cpu.yaml")
    train.add_argument("--dry-run", action="store_true", help="take one step on the dearest packs and tell its needs")

    evaluate = command(
        "eval", commands.run_eval, "held-out loss per source and answers to fixed prompts", settings=True
    )
    evaluate.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help=CHECKPOINT_HELP)

    chat = command("chat", commands.run_chat, "talk to a checkpoint", settings=True)
    chat.add_argument("checkpoint", type=Path, help=CHECKPOINT_HELP)

    export = command(
        "export", commands.run_export, "a Hugging Face folder for transformers, vLLM and lm-eval", settings=True
    )
    export.add_argument("checkpoint", type=Path, help=CHECKPOINT_HELP)
    export.add_argument("out", type=Path, help="new folder to write")


if __name__ == "__main__":
    sys.exit(main())
