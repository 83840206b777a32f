"""DeepSpeed's JSON for a run, derived from our config; users never write it."""

from typing import Any

import torch

from sft.config.train import TrainConfig

BUCKET_ELEMENTS = 50_000_000
"""Elements per message between processes: 0.2 GB in fp32, large enough to use the full speed of the network."""


def deepspeed_json(config: TrainConfig, device: torch.device) -> dict[str, Any]:
    """The DeepSpeed configuration of a run.

    It names no precision: weights stay fp32 and our own autocast rounds, as in every other engine. DeepSpeed logs,
    times and checkpoints nothing, and the caller marks the last micro-batch of a step.
    """
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch_packs,
        "gradient_accumulation_steps": 1,  # DeepSpeed would divide by this number, if configured to
        "gradient_clipping": config.optimizer.clip_norm if config.deepspeed.zero_stage else 0.0,
        "steps_per_print": None,
        "zero_allow_untested_optimizer": True,  # PyTorch's AdamW, which needs no compilation
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": _zero(config, device),
    }


def _zero(config: TrainConfig, device: torch.device) -> dict[str, Any]:
    stage = config.deepspeed.zero_stage
    settings: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "allgather_bucket_size": BUCKET_ELEMENTS,
    }
    if config.deepspeed.offload_optimizer:
        # Only pinned memory is copied while the GPU computes.
        settings["offload_optimizer"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
    return settings
