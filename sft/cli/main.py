"""The `sft` command: parser, errors and exit codes; each subcommand is in a file of its name."""

import argparse
import re
import sys
import traceback
from collections.abc import Sequence

from sft.cli import build, chat, demo, diff, doctor, evaluate, export, fetch, inspect, train, verify
from sft.cli.arguments import Commands, Parser
from sft.console.streams import TERMINATED, command_environment
from sft.errors import ConfigError, SftError
from sft.version import VERSION

COMMANDS = (demo, fetch, build, inspect, diff, verify, doctor, train, evaluate, chat, export)
"""In the order in which `sft --help` lists them."""
EXIT_CODES = (
    "exit codes: 0 done, 65 bad data, 70 numerics, 71 peer or cluster, 74 storage, "
    "75 stopped on purpose (run again), 78 bad config, 1 bug"
)
# A path may also contain a `=`, but only after a slash.
SETTING = re.compile(r"[A-Za-z_][\w.-]*=")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (see sft/errors.py)."""
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


def _parse(words: list[str]) -> argparse.Namespace:
    """The options and the settings, which may be anywhere on the line."""
    settings = [word for word in words if SETTING.match(word)]
    options = _parser().parse_args([word for word in words if not SETTING.match(word)])
    if settings and not options.takes_settings:
        raise ConfigError(f"sft {options.command} takes no settings, got {settings[0]}")
    options.settings = settings
    return options


def _parser() -> Parser:
    parser = Parser(
        prog="sft", description="Supervised fine-tuning that reproduces StableLM-Tuned-Alpha.", epilog=EXIT_CODES
    )
    parser.add_argument("--version", action="version", version=f"sft {VERSION}")
    commands = Commands(parser)
    for command in COMMANDS:
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
