"""`sft doctor`: show what is installed and what will run here; with a model, whether it computes correctly."""

import argparse
import os
import platform
import re
import shutil
import tomllib
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from sft.bundle import BATCH_SCRIPTS, CONFIGS, MIXTURES, names_in
from sft.cli.arguments import Commands, config_file
from sft.errors import ConfigError
from sft.version import VERSION, version_of

if TYPE_CHECKING:  # otherwise imported where they are needed: `sft --help` reads this file too
    from packaging.requirements import Requirement
    from rich.console import Console
    from rich.table import Table

ROOT = Path(__file__).parents[2]
"""The project's folder, if sft runs from its sources."""
PURPOSES = {
    "deepspeed": "engine=deepspeed: ZeRO",
    "fast": "tokenizer_backend=fastokens: builds several times faster",
    "flash": "FlashAttention instead of PyTorch's kernel for documents",
    "tensorboard": "tensorboard=true: event files in the run folder",
    "wandb": "wandb.enabled=true",
}
"""What each optional extra is for; `dev` is for working on sft itself."""
SHOWN = ("torch", "transformers", "tokenizers", "pyarrow", "numpy")
GIB = 1 << 30


@dataclass(frozen=True)
class Package:
    """A requirement of ours, and its installed version."""

    requirement: "Requirement"
    extra: str | None
    version: str | None

    @property
    def is_fine(self) -> bool:
        return self.version is not None and self.requirement.specifier.contains(self.version, prereleases=True)

    @property
    def state(self) -> str:
        """The version, and its problem if there is one."""
        if self.version is None:
            return "missing"
        return self.version if self.is_fine else f"{self.version}, needs {self.requirement.specifier}"


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    text = "show what is installed, what will run here and what is missing"
    parser = commands.add("doctor", run, text, takes_settings=True)
    parser.add_argument(
        "--model",
        type=Path,
        metavar="FOLDER|CONFIG",
        help="prove on these weights that attention kernel and precision compute what they should",
    )
    parser.add_argument("--shards", type=Path, help="take a pack of these; otherwise the config's, or random tokens")


def run(options: argparse.Namespace) -> None:
    """Show what is installed and, with a model, whether it computes correctly."""
    from rich.console import Console

    console = Console(highlight=False)
    if options.model is None:
        if options.settings or options.shards:
            raise ConfigError("--shards and settings belong to a model", hint="sft doctor --model FOLDER|CONFIG.yaml")
        doctor(console)
        return
    from sft.cli.doctor_model import check_model

    path = options.model if options.model.is_dir() else config_file(options.model)
    check_model(path, options.shards, options.settings, console)


def doctor(console: "Console") -> None:
    """Show what is installed and what is missing.

    Raises: ConfigError if a required package is missing.
    """
    packages = list(installed())
    required = [package for package in packages if package.extra is None]
    _show_required(console, required)
    _show_extras(console, [package for package in packages if package.extra is not None])
    bad = [package for package in required if not package.is_fine]
    if bad:
        raise ConfigError(
            "not installed as needed: " + ", ".join(f"{it.requirement.name} ({it.state})" for it in bad),
            hint=install_command(),
        )
    _show_devices(console)
    _show_disk(console)
    _show_bundle(console)


def installed() -> Iterator[Package]:
    """Every required or optional package of ours for this system and this Python."""
    from packaging.requirements import Requirement

    for text, extra in _requirements():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra or ""}):
            continue
        yield Package(requirement, extra, version_of(requirement.name))


def install_command(*extras: str) -> str:
    """The command that installs everything that is required, with these extras."""
    suffix = f"[{','.join(extras)}]" if extras else ""
    if (ROOT / "constraints.txt").is_file():
        return f"pip install -c constraints.txt -e '.{suffix}'"
    return f"pip install 'sft{suffix}'"


def _requirements() -> Iterator[tuple[str, str | None]]:
    if (ROOT / "pyproject.toml").is_file():
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        yield from ((text, None) for text in project["dependencies"])
        extras = project["optional-dependencies"]
        yield from ((text, extra) for extra in PURPOSES for text in extras[extra])
        return
    for text in metadata.requires("sft") or []:
        found = re.search(r"extra == ['\"](\w+)['\"]", text)
        if found is None or found[1] in PURPOSES:
            yield text, found[1] if found else None


def _show_required(console: "Console", required: list[Package]) -> None:
    versions = {package.requirement.name: package.version for package in required}
    console.print(f"sft {VERSION}, Python {platform.python_version()}, {platform.platform(terse=True)}")
    num_fine = sum(package.is_fine for package in required)
    shown = ", ".join(f"{name} {versions[name]}" for name in SHOWN if versions.get(name))
    console.print(f"{num_fine} of {len(required)} required packages are here: {shown}, …")


def _show_extras(console: "Console", extras: list[Package]) -> None:
    from rich.text import Text

    table = _table("extra", "package", "version", "what for")
    for package in extras:
        state = Text(package.state, "" if package.is_fine else "yellow")
        table.add_row(package.extra, package.requirement.name, state, PURPOSES[str(package.extra)])
    console.print(table)
    missing = [str(package.extra) for package in extras if not package.is_fine]
    if missing:
        console.print(f"to add what is missing: {install_command(*missing)}", markup=False, soft_wrap=True)


def _show_devices(console: "Console") -> None:
    import torch

    from sft.config.train import TrainConfig
    from sft.data.build.pool import num_cores

    table = _table("device", "memory", "fp32", "bf16", "fp16")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    table.add_row(f"cpu, {num_cores()} cores", _gib(memory), *_kernels("cpu"))
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        table.add_row(f"cuda:{number}, {facts.name}", _gib(facts.total_memory), *_kernels("cuda", number))
    console.print("attention here, by device and precision:")
    console.print(table)
    if not torch.cuda.is_available():
        console.print(f"no GPU: {_why_no_gpu()}")
    engines = ", ".join(typing.get_args(typing.get_type_hints(TrainConfig)["engine"]))
    console.print(f"engines: {engines}; one process per GPU, started by torchrun or srun")
    console.print(f"slurm: {shutil.which('sbatch') or 'no sbatch on this machine'}")


def _kernels(kind: str, number: int = 0) -> Iterator[str]:
    import torch

    from sft.config.model import Precision
    from sft.model.attention import backend
    from sft.train.engine.precision import HALF

    device = torch.device(kind, number)
    for precision in typing.get_args(Precision):
        if precision == "bf16" and kind == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
            yield "slow: emulated"
        else:
            yield backend(device, HALF.get(precision, torch.float32))


def _why_no_gpu() -> str:
    import torch

    if torch.version.cuda is None:
        has_driver = shutil.which("nvidia-smi") is not None
        also = ", although this machine has an NVIDIA driver: install a CUDA build" if has_driver else ""
        return f"torch {torch.__version__} is built without CUDA{also}"
    return f"torch {torch.__version__} is built for CUDA {torch.version.cuda}, but finds no device (see nvidia-smi)"


def _show_disk(console: "Console") -> None:
    from sft.model.registry import meta_model, presets
    from sft.train.engine.optimizer import saved_bytes

    free = shutil.disk_usage(Path.cwd()).free
    room = []
    for size_name in ("3b", "7b"):
        size = saved_bytes(meta_model(presets()[f"stablelm_{size_name}"]))
        room.append(f"{free // size} of {size_name.upper()} ({_gib(size)} each)")
    console.print(f"disk: {_gib(free)} free here; checkpoints that fit: {', '.join(room)}")


def _show_bundle(console: "Console") -> None:
    console.print(f"mixtures for sft build and sft fetch: {', '.join(names_in(MIXTURES))}")
    console.print(f"configs for sft train: {', '.join(names_in(CONFIGS))}")
    console.print(f"batch scripts for Slurm: {BATCH_SCRIPTS.resolve()}", markup=False, soft_wrap=True)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:,.1f} GiB"


def _table(*columns: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
