"""Arguments that the commands share: settings, and files that may be those bundled with sft."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from sft.bundle import CONFIGS, MIXTURES, bundled, names_in
from sft.errors import ConfigError

MIXTURE_HELP = "file of a mixture, such as data_recipes/mixtures/stablelm_tuned_alpha.yaml, or a bundled name"
CHECKPOINT_HELP = "checkpoint, run folder (its newest checkpoint) or exported folder"
SETTINGS_HELP = "key=value settings win over the file, such as out=runs/first optimizer.lr=1e-5"


class Parser(argparse.ArgumentParser):
    """Raises ConfigError for a wrong command line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, hint=f"{self.prog} --help")


class Commands:
    """The list of commands; each command adds itself."""

    def __init__(self, parser: Parser) -> None:
        self._list = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(
        self, name: str, run: Callable[[argparse.Namespace], None], text: str, *, takes_settings: bool = False
    ) -> Parser:
        """A parser for the command's own arguments."""
        parser: Parser = self._list.add_parser(
            name, help=text, description=text, epilog=SETTINGS_HELP if takes_settings else None
        )
        parser.set_defaults(run=run, takes_settings=takes_settings)
        return parser


def add_print_config(parser: argparse.ArgumentParser) -> None:
    """Add the option with which a command shows its settings and stops."""
    help_text = "show the resolved settings and where each value came from, then stop"
    parser.add_argument("--print-config", action="store_true", help=help_text)


def load_typed(schema: type[Any], options: argparse.Namespace) -> Any:
    """The settings of a command without a config file, from its arguments only."""
    from sft.config.loading import load, read_arguments

    return load(schema, [read_arguments(options.settings)])


def is_printed(options: argparse.Namespace, loaded: Any) -> bool:
    """Print the resolved settings if only these were requested; returns whether it did."""
    if options.print_config:
        from sft.config.yaml_text import describe

        print(describe(loaded))
    return bool(options.print_config)


def mixture_file(path: Path) -> Path:
    """The mixture of this path or name."""
    return _file(path, MIXTURES)


def config_file(path: Path) -> Path:
    """The training config of this path or name."""
    return _file(path, CONFIGS)


def folder_of_rows(path: str) -> str:
    """The folder of raw files of this path; the sample rows are bundled with sft."""
    copy = None if Path(path).exists() else bundled(Path(path))
    return path if copy is None else str(_told(Path(path), copy))


def _file(path: Path, folder: Path) -> Path:
    if path.is_file():
        return path
    names = names_in(folder)
    copy = folder / f"{path}.yaml" if str(path) in names else bundled(path)
    if copy is None or not copy.is_file():
        raise ConfigError("no such file", on=path, hint=f"give the path of a YAML file, or one of {', '.join(names)}")
    return _told(path, copy)


def _told(path: Path, copy: Path) -> Path:
    # Not to standard output, which a script may read.
    print(f"{path} is not in this folder; sft uses its own copy: {copy}", file=sys.stderr)
    return copy
