"""`sft doctor --model`: the numerics gate on real weights and a real pack, as a table of the measured values."""

import typing
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sft.config.loading import load as load_settings
from sft.config.loading import read_arguments
from sft.config.model import ModelConfig, Precision
from sft.config.train import TrainConfig
from sft.config.yaml_text import read_yaml
from sft.data.shards import Pack, Shards
from sft.errors import ConfigError
from sft.inference.load import load
from sft.model.base import LanguageModel
from sft.model.objectives.next_token import NextToken
from sft.model.registry import meta_model
from sft.train.checkpoint.initial_weights import StartingWeights, starting_shape
from sft.train.distributed.ranks import SINGLE
from sft.train.distributed.world import choose_device
from sft.train.engine.forward import Measure, measure
from sft.train.engine.native import TorchEngine
from sft.train.engine.precision import autocast
from sft.train.numerics.gate import Check, all_checks, kernel_name, pick, require, require_finite_weights

MAX_CPU_TOKENS = 1024
"""On a CPU, where billions of weights take minutes, a long pack is cut to its first documents up to this size."""
NUM_PACKS_LOOKED_AT = 64
PACK_TOKENS = 4096
SYNTHETIC_SHARES = (0.5, 0.25, 0.125, 0.0625, 0.0625)
"""Lengths of the synthetic pack's documents."""
MILLION = 1_000_000


def check_model(path: Path, shards: Path | None, settings: list[str], console: Console) -> None:
    """Show every check of the gate; a folder in all precisions, a training config in its own.

    Raises: NumericsError if one fails; ConfigError if path is neither, or model and shards do not fit.
    """
    if path.is_file():
        config = load_settings(TrainConfig, [read_yaml(path), read_arguments(settings)]).config
        _check_config(config, Shards.open(shards or Path(config.shards)), console)
        return
    if settings:
        raise ConfigError(f"settings belong to a config, got {settings[0]}", on=path, hint="--model CONFIG.yaml")
    device = choose_device("auto")
    model = load(path, device).model
    pack, name = _pack_of(Shards.open(shards), model) if shards else synthetic_pack(model.config, device)
    objective, precisions = NextToken(model), typing.get_args(Precision)
    measures: dict[Precision, Measure] = {
        it: partial(measure, objective, device, autocast(device, it)) for it in precisions
    }
    _show_gate(model, measures, pack, f"{path}: ", name, console)


def synthetic_pack(shape: ModelConfig, device: torch.device) -> tuple[Pack, str]:
    """A pack of documents of random tokens, each half as long, with loss on the last third; and its name."""
    num_tokens = min(PACK_TOKENS if device.type == "cuda" else MAX_CPU_TOKENS, shape.max_positions)
    lengths_N = np.array([max(3, int(share * num_tokens)) for share in SYNTHETIC_SHARES])
    ids_T = np.random.default_rng(0).integers(0, shape.vocab_size, lengths_N.sum())
    mask_T = np.concatenate([np.arange(size) >= 2 * size // 3 for size in lengths_N]).astype(np.uint8)
    return Pack(ids_T, mask_T, lengths_N, np.arange(len(lengths_N)), int(mask_T.sum())), "random tokens"


def _check_config(config: TrainConfig, shards: Shards, console: Console) -> None:
    device = choose_device(config.device)
    shape = starting_shape(config.model, shards)
    model = meta_model(shape, activation_checkpointing=config.activation_checkpointing)
    engine = TorchEngine(NextToken(model), config, device)
    engine.load(StartingWeights(config.model, shape, config.seed))
    pack, name = _pack_of(shards, engine.model)
    _show_gate(engine.model, {config.precision: engine.measure}, pack, f"{config.model.weights}: ", name, console)


def _pack_of(shards: Shards, model: LanguageModel) -> tuple[Pack, str]:
    """A pack of the training split with more than one document, and its name."""
    num_ids, vocab_size = shards.manifest.tokenizer.num_ids, model.config.vocab_size
    if num_ids > vocab_size or shards.seq_len > model.config.max_positions:
        raise ConfigError(
            f"{num_ids} ids and {shards.seq_len} tokens per pack, the model has {vocab_size} embedding rows and "
            f"{model.config.max_positions} positions",
            on=shards.folder,
            hint="name shards built for this model",
        )
    split = shards.split("train")
    index = pick(split, range(min(len(split), NUM_PACKS_LOOKED_AT)))
    pack, name = split[index], f"train pack {index} of {shards.folder}"
    if model.head_weight.is_cuda or pack.num_tokens <= MAX_CPU_TOKENS:
        return pack, name
    return _beginning(pack, MAX_CPU_TOKENS), f"beginning of {name}"


def _beginning(pack: Pack, max_tokens: int) -> Pack:
    """As many documents as fit, but at least two."""
    ends = np.cumsum(pack.doc_lengths_N)
    count = max(2, int(np.searchsorted(ends, max_tokens, side="right")))
    stop = int(ends[:count][-1])
    ids_T, mask_T = pack.input_ids_T[:stop], pack.loss_mask_T[:stop]
    return Pack(ids_T, mask_T, pack.doc_lengths_N[:count], pack.doc_ids_N[:count], int(mask_T.sum()))


def _show_gate(
    model: LanguageModel, measures: dict[Precision, Measure], pack: Pack, title: str, pack_name: str, console: Console
) -> None:
    device, num_parameters = model.head_weight.device, model.num_parameters
    console.print(f"{title}{num_parameters / MILLION:,.1f} million parameters on {device}", soft_wrap=True)
    console.print(
        f"{pack_name}: {len(pack.doc_lengths_N)} documents, {pack.num_tokens:,} tokens, "
        f"{pack.num_supervised:,} with loss",
        soft_wrap=True,
    )
    require_finite_weights(model, str(device), SINGLE)
    results = {it: all_checks(measures[it], model, pack, it, SINGLE) for it in measures}
    console.print(_table(model, results))
    for precision, checks in results.items():
        require(checks, f"{pack_name}, {kernel_name(model, precision)}, {precision}")
    console.print(f"{', '.join(results)}: every check passed")


def _table(model: LanguageModel, results: dict[Precision, list[Check]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("measured (allowed)", overflow="fold", vertical="bottom")
    for precision in results:
        table.add_column(Text(f"{precision}\n{kernel_name(model, precision)}"), justify="right")
    for row in zip(*results.values(), strict=True):
        table.add_row(row[0].what, *(_cell(check) for check in row))
    return table


def _cell(check: Check) -> Text:
    measured = f"{check.measured:.1e}" if check.measured % 1 else f"{check.measured:g}"
    return Text(
        f"{measured} ({check.bound:.1e})" if check.bound else measured, "green" if check.is_passed else "bold red"
    )
