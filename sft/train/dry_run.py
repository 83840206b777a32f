"""`sft train --dry-run`: take one step on the largest packs, print what the run needs, and write nothing.

What fits here fits in every step of the run: no other micro-batch has more tokens or longer documents.
"""

import os
import resource
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sft.config.train import TrainConfig
from sft.console.progress import duration
from sft.errors import NumericsError, PeerError
from sft.train.checkpoint.store import FREE_SPACE_FACTOR
from sft.train.distributed.rank_batches import pack_cost, shared_batches
from sft.train.distributed.ranks import RankGroup, connected
from sft.train.distributed.world import World, choose_device
from sft.train.engine.base import Engine
from sft.train.inputs import Inputs, open_inputs
from sft.train.lr_schedule import learning_rate
from sft.train.setup import make_engine

NUM_ROUNDS = 2
"""Micro-batches of the step: the second one adds to existing gradients, as most micro-batches of a run do."""


@dataclass(frozen=True)
class Tried:
    """The measured cost of the dry run's step."""

    loss: float
    num_tokens: int
    """Tokens of all processes in the timed micro-batch."""
    seconds: float
    """Time of that micro-batch in the slowest process."""
    step_s: float
    """Time of the update."""
    memory_bytes: int
    """Peak memory of the process that used the most."""


def dry_run(
    config: TrainConfig,
    *,
    world: World | None = None,
    environ: Mapping[str, str] = os.environ,
    meeting_place: str = "env://",
) -> None:
    """Take one step on the largest packs and print what the run will need.

    Raises: the SftErrors of a run that cannot work; OutOfMemory as PeerError.
    """
    world = world or World.of(environ)
    device = choose_device(config.device, world.local_rank)
    with connected(world, device, timeout_s=config.distributed.timeout_s, init_method=meeting_place) as ranks:
        with ranks.raise_on_all():
            inputs = open_inputs(config)
            engine = make_engine(config, inputs, ranks, device)
        try:
            tried = _try(config, inputs, engine, ranks, device)
        except torch.OutOfMemoryError as error:
            raise PeerError(
                f"out of memory in a step of {config.micro_batch_packs} packs per micro-batch: {error}",
                on=str(device),
                hint="lower micro_batch_packs, set activation_checkpointing, or share the model among more processes",
            ) from error
        if ranks.is_first:
            for line in report(config, inputs, engine.checkpoint_bytes, tried, ranks.size, device):
                print(line)
    if not np.isfinite(tried.loss):
        raise NumericsError(f"the loss is {tried.loss}", on="dry run", hint="sft doctor --model looks for the reason")


def _try(config: TrainConfig, inputs: Inputs, engine: Engine, ranks: RankGroup, device: torch.device) -> Tried:
    split = inputs.split
    largest = sorted(range(len(split)), key=lambda pack: (-pack_cost(split, pack), pack))
    packs = largest[: config.micro_batch_packs * ranks.size]
    num_supervised = max(1, int(split.num_supervised_P[packs].sum())) * NUM_ROUNDS
    for number in range(NUM_ROUNDS):
        started_s = _now(device)
        for batch in shared_batches(split, packs, config.micro_batch_packs, ranks):
            engine.forward_backward(batch, num_supervised, is_last=number == NUM_ROUNDS - 1)
        computed_s = _now(device)
    result = engine.step(learning_rate(0, inputs.order.num_steps, config.optimizer))
    own = ranks.gather([computed_s - started_s, _now(device) - computed_s, _peak_bytes(device)]).max(axis=0)
    num_tokens = int(inputs.num_tokens_P[packs].sum())
    return Tried(result.loss_sum / num_supervised, num_tokens, float(own[0]), float(own[1]), int(own[2]))


def report(
    config: TrainConfig, inputs: Inputs, checkpoint_bytes: int, tried: Tried, world_size: int, device: torch.device
) -> list[str]:
    """The resources that the run will need, line by line."""
    free = shutil.disk_usage(_nearest_folder(Path(config.out))).free
    per_token_s = tried.seconds / tried.num_tokens
    steps, tokens = inputs.order.num_steps, inputs.num_tokens_P.mean() * inputs.order.num_samples
    per_process = "" if world_size == 1 else ", in the process that uses the most"
    total = f" of {torch.cuda.mem_get_info(device)[1] / 1e9:.1f}" if device.type == "cuda" else ""
    kept = config.checkpoint.keep_last + 1
    space = "" if free > FREE_SPACE_FACTOR * kept * checkpoint_bytes else ": too little"
    return [
        f"one step on the largest packs: loss {tried.loss:.3f}, {tried.num_tokens / tried.seconds:,.0f} tokens/s, "
        f"update {tried.step_s:.2f} s",
        f"memory: {tried.memory_bytes / 1e9:.2f}{total} GB{per_process}",
        f"time: {steps} steps, about {duration(per_token_s * tokens + steps * tried.step_s)} without saving",
        f"disk: {checkpoint_bytes / 1e9:.2f} GB per checkpoint, up to {kept} at once, {free / 1e9:.1f} GB free{space}",
        "nothing was written",
    ]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _nearest_folder(path: Path) -> Path:
    return next(folder for folder in [path, *path.absolute().parents] if folder.is_dir())
