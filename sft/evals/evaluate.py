"""`sft eval`: held-out loss per source and answers to fixed prompts, as JSON and as a table."""

import json
import math
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from sft.config.inference import EvalConfig
from sft.console.progress import progress
from sft.data.shards import Shards, Split
from sft.errors import ConfigError, NumericsError
from sft.inference.answer import samples
from sft.inference.load import LoadedModel, find, load
from sft.model.objectives.next_token import NextToken
from sft.storage.atomic import write_text
from sft.train.distributed.world import choose_device
from sft.train.engine.forward import measure
from sft.train.engine.precision import autocast
from sft.train.held_out_loss import SourceLoss, held_out_loss
from sft.train.run_layout import CHECKPOINTS, RunLayout
from sft.version import VERSION


def evaluate(checkpoints: Sequence[Path], config: EvalConfig, console: Console) -> Path:
    """Evaluate the checkpoints one after the other, print a table for each and write one JSON file."""
    device = choose_device(config.device)
    out = Path(config.out) if config.out else _default_out(checkpoints[0])
    if out.is_dir():
        raise ConfigError("is a folder, expected the name of a file", on=out, hint="set out=….json")
    for path in checkpoints:
        find(path)  # a mistyped path is reported before hours are spent on the others
    results: list[dict[str, Any]] = []
    for path in checkpoints:
        results.append(_evaluate(load(path, device), config, device))
        # Rewritten after each checkpoint, so that a later failure loses nothing.
        write_text(out, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
        show(results[-1], console)
    console.print(f"written to {out}", highlight=False, markup=False, soft_wrap=True)
    return out


def show(result: dict[str, Any], console: Console) -> None:
    """Print one checkpoint's result."""
    step = "" if result["step"] is None else f", step {result['step']}"
    console.print(f"{result['checkpoint']}{step}", style="bold", highlight=False, markup=False, soft_wrap=True)
    if result["losses"]:
        shards = result["shards"]
        title = f"{shards['name']}, {shards['split']} split, {shards['packs']} packs"
        table = Table("source", "loss", "perplexity", "token accuracy", "tokens", title=title, title_justify="left")
        for name, values in result["losses"].items():
            perplexity, accuracy = f"{values['perplexity']:,.2f}", f"{values['accuracy']:.2%}"
            table.add_row(name, f"{values['loss']:.4f}", perplexity, accuracy, f"{values['tokens']:,}")
        console.print(table)
    else:
        console.print("no held-out loss: set shards=… to a build whose split is not empty")
    for sample in result["samples"]:
        console.print(sample["prompt"], style="cyan", markup=False, highlight=False)
        console.print(f"  {sample['answer'].strip() or '(nothing)'}", markup=False, highlight=False, style="green")


def _evaluate(loaded: LoadedModel, config: EvalConfig, device: torch.device) -> dict[str, Any]:
    shards = _shards(loaded, config)
    measured = dict(_losses(loaded, shards, config, device)) if shards else {}
    with torch.inference_mode(), autocast(device, config.precision):
        system = config.system or loaded.tokenizer.format.default_system
        answers = list(samples(loaded, config.prompts, system, config.generation))
    return {
        "checkpoint": str(loaded.folder),
        "step": loaded.state.step if loaded.state else None,
        "shards": shards
        and {
            "name": shards.manifest.name,
            "content_digest": shards.manifest.content_digest,
            "split": config.split,
            "packs": _num_packs(shards.split(config.split), config),
        },
        "losses": measured,
        "samples": [asdict(sample) for sample in answers],
        "generation": asdict(config.generation),
        "precision": config.precision,
        "device": str(device),
        "versions": {"sft": VERSION, "torch": torch.__version__, "python": platform.python_version()},
    }


def _num_packs(split: Split, config: EvalConfig) -> int:
    return len(split) if config.max_packs is None else min(len(split), config.max_packs)


def _losses(
    loaded: LoadedModel, shards: Shards, config: EvalConfig, device: torch.device
) -> Iterator[tuple[str, dict[str, float]]]:
    split, objective = shards.split(config.split), NextToken(loaded.model)
    with progress("evaluate", _num_packs(split, config), unit="packs") as advance:
        losses: dict[str, SourceLoss] = held_out_loss(
            lambda batch: measure(objective, device, autocast(device, config.precision), batch),
            split,
            shards.documents,
            max_packs=config.max_packs,
            micro_batch_packs=config.micro_batch_packs,
            advance=lambda batch: advance(len(batch.packs), ""),
        )
    if not all(math.isfinite(value.nll_sum) for value in losses.values()):
        raise NumericsError(
            "its loss is not finite", on=loaded.folder, hint="try precision=fp32, or another checkpoint"
        )
    for name, value in losses.items():
        if value.num_tokens:
            yield name, value.as_record()


def _shards(loaded: LoadedModel, config: EvalConfig) -> Shards | None:
    """The shards to measure on: those of the config, or those that the checkpoint was trained on.

    Raises: ConfigError if they were made with another tokenizer, or are not where they were.
    """
    if config.shards:
        shards = Shards.open(Path(config.shards))
    elif loaded.state is None:
        return None
    else:
        shards = Shards.open(Path(str(loaded.state.config["shards"])))
        if shards.manifest.content_digest != loaded.state.shards["content_digest"]:
            raise ConfigError(
                "not the build that this checkpoint was trained on", on=shards.folder, hint="set shards=…"
            )
    if shards.manifest.tokenizer.sha256 != loaded.tokenizer.sha256:
        raise ConfigError("made with another tokenizer than the checkpoint's", on=shards.folder, hint="set shards=…")
    return shards


def _default_out(path: Path) -> Path:
    if RunLayout(path).checkpoints.is_dir():
        return path / "eval.json"
    if path.parent.name == CHECKPOINTS:
        return path.parent.parent / f"eval-{path.name}.json"
    return path.parent / f"{path.name}-eval.json"
