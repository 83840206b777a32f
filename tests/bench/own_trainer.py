"""`sft train` as a job to be measured, with the time in its parts: engine, loader, logging, ledger."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from measured import Job
from steps import BETAS, CLIP_NORM, EPS, LR, WEIGHT_DECAY, Watch, Work

from sft.config.engine import OptimizerConfig
from sft.config.model import InitConfig
from sft.config.train import TrainConfig

PARTS = ("engine", "loader", "logging", "ledger")


def prepare_weights(shards: Path, preset: str, seed: int, folder: Path) -> Job:
    """Fresh weights as a Hugging Face folder, for everyone to start from."""
    import torch

    from sft.data.shards import Shards
    from sft.model.hf_folder import write_folder
    from sft.model.registry import build
    from sft.train.checkpoint.initial_weights import starting_shape

    shape = starting_shape(InitConfig("scratch", preset), Shards.open(shards))

    def run() -> int:
        model = build(shape, "cpu")
        model.initialise(torch.Generator().manual_seed(seed))
        folder.mkdir()
        write_folder(dict(model.named_parameters()), shape, folder, torch.float32, 1 << 40)
        return sum(parameter.numel() for parameter in model.parameters())

    return run, lambda count: {"parameters": count}


def prepare_own(work: Work) -> Job:
    """The command, from the first step's start to the last one's."""
    import torch

    from sft.train import loop
    from sft.train.engine.native import TorchEngine
    from sft.train.monitor import metrics, records

    torch.set_num_threads(work.threads)
    optimizer = OptimizerConfig(LR, BETAS, EPS, WEIGHT_DECAY, CLIP_NORM, warmup_steps=0, schedule="constant")
    config = TrainConfig(
        shards=str(work.shards),
        model=InitConfig(str(work.weights)),
        out=str(work.scratch / "run"),
        optimizer=optimizer,
        batch_packs=work.batch_packs,
        micro_batch_packs=work.micro_batch_packs,
        max_steps=work.num_steps,
        precision=work.precision,  # type: ignore[arg-type]
        device="cpu",
        checkpoint__every_steps=1 << 30,
    )
    watch = Watch()

    def run() -> list[dict[str, Any]]:
        with ExitStack() as patches:
            patches.enter_context(watch.starts(loop, "train_step"))
            for function in ("forward_backward", "step"):
                patches.enter_context(watch.calls("engine", TorchEngine, function))
            patches.enter_context(watch.items("loader", loop, "shared_batches"))
            patches.enter_context(watch.calls("logging", metrics.Tracker, "log"))
            patches.enter_context(watch.calls("ledger", loop, "exchange_status"))
            loop.train(config)
        told = records.read_records(Path(config.out) / "metrics.jsonl")
        return [record for record in told if record["kind"] == records.STEP]

    def describe(records: list[dict[str, Any]]) -> dict[str, Any]:
        columns = {name: [record[name] for record in records] for name in ("loss", "grad_norm", "tokens")}
        parts = {f"{name}_s": watch.per_step(name) for name in PARTS}
        return watch.described(columns["loss"], columns["grad_norm"]) | parts | {"tokens": columns["tokens"][:-1]}

    return run, describe
