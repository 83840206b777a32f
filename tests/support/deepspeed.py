"""Steps of the DeepSpeed engine in several processes, and of the torch engine in one, on the same packs."""

import gc
import importlib
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from sft.config.engine import DeepSpeedConfig
from sft.config.model import ModelConfig
from sft.config.train import TrainConfig
from sft.data.batches.batch import Batch, micro_batches
from sft.data.batches.sampler import Order
from sft.data.shards import Shards
from sft.model.hf_folder import stored_weights
from sft.model.neox.model import NeoX
from sft.model.objectives.next_token import NextToken
from sft.model.registry import parameter_shapes
from sft.train.checkpoint.initial_weights import StartingWeights, starting_shape
from sft.train.checkpoint.tensors import StoredSlices, write_slices
from sft.train.distributed.ranks import SINGLE, RankGroup
from sft.train.engine.base import MOMENTS, Engine, Kind
from sft.train.engine.deepspeed.engine import DeepSpeedEngine
from sft.train.engine.native import TorchEngine

CPU = torch.device("cpu")
LR = 1e-3
NUM_STEPS = 20
KINDS: tuple[Kind, ...] = ("weight", *MOMENTS)

MakeConfig = Callable[..., TrainConfig]
Tensors = dict[str, torch.Tensor]


def preload() -> None:
    """Import what every process would import: forks inherit it."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    importlib.import_module("deepspeed")
    importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    gc.freeze()  # or each fork looks through, and so copies, all that was imported: DeepSpeed collects garbage


def zero(config: TrainConfig, stage: int, *, offload: bool = False) -> TrainConfig:
    return replace(config, engine="deepspeed", deepspeed=DeepSpeedConfig(stage, offload))


def shape_of(config: TrainConfig) -> ModelConfig:
    """Two layers: DeepSpeed's time goes by the number of modules."""
    return replace(starting_shape(config.model, Shards.open(Path(config.shards))), num_layers=2)


def make_engine(config: TrainConfig) -> Engine:
    """An engine with the weights to start from."""
    shape = shape_of(config)
    with torch.device("meta"):
        model = NeoX(shape)
    model.activation_checkpointing = config.activation_checkpointing
    engine: Engine = (TorchEngine if config.engine == "torch" else DeepSpeedEngine)(NextToken(model), config, CPU)
    engine.load(StartingWeights(config.model, shape, config.seed))
    return engine


def batches_of(config: TrainConfig, step: int, ranks: RankGroup) -> tuple[list[Batch], int]:
    """A process's micro-batches of a step, equally many for each, and the supervised tokens of all of them."""
    split = Shards.open(Path(config.shards)).split("train")
    packs = Order(len(split), config.batch_packs, 50, config.seed).batch(step)
    mine = list(micro_batches(split, packs[ranks.rank :: ranks.size], config.micro_batch_packs))
    num_rounds = len(list(micro_batches(split, packs[:: ranks.size], config.micro_batch_packs)))
    return mine + [Batch.empty()] * (num_rounds - len(mine)), int(split.num_supervised_P[packs].sum())


def take_step(engine: Engine, config: TrainConfig, step: int, ranks: RankGroup = SINGLE) -> dict[str, Any]:
    """The result of one step as JSON values, and its mean loss; the learning rate falls from step to step."""
    batches, num_supervised = batches_of(config, step, ranks)
    for number, batch in enumerate(batches):
        engine.forward_backward(batch, num_supervised, is_last=number == len(batches) - 1)
    result = asdict(engine.step(LR * (1 - step / 50)))
    sums = {f"sum of {name}": total for name, total in result.pop("sums").items()}
    return {**result, **sums, "loss": result["loss_sum"] / num_supervised}


def run(ranks: RankGroup, config: TrainConfig, out: str, steps: tuple[int, int], before: str | None, state: Any) -> Any:
    """Take steps, from the start or on from what lies in `before`, and save; returns their results and the state."""
    engine = make_engine(config)
    if before is not None:
        engine.restore(StoredSlices(Path(before), stored_weights(Path(before), shape_of(config))), state)
    results = [take_step(engine, config, step, ranks) for step in range(*steps)]
    save(engine, Path(out), ranks)
    return results, engine.state()


def save(engine: Engine, folder: Path, ranks: RankGroup = SINGLE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_slices(engine.slices(), engine.model.config, folder, ranks.rank, ranks.size)
    return folder


def saved_tensors(config: TrainConfig, folder: Path) -> Tensors:
    """Weights and moments in a folder; reading them proves that every element was written exactly once."""
    sizes = parameter_shapes(shape_of(config))
    stored = StoredSlices(folder, stored_weights(folder, shape_of(config)))
    return {
        f"{name} {kind}": stored.flat(kind, name, 0, torch.Size(shape).numel())
        for name, shape in sizes.items()
        for kind in KINDS
    }


def assert_same_bits(left: Tensors, right: Tensors) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def distance(found: Tensors, expected: Tensors, kind: str) -> float:
    """How far weights or moments lie from what is expected, as a share of the length of what is expected."""
    names = [name for name in expected if name.endswith(f" {kind}")]
    whole, wanted = (torch.cat([tensors[name] for name in names]).double() for tensors in (found, expected))
    return float((whole - wanted).norm() / wanted.norm())
