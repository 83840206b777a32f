"""DeepSpeed's JSON for a run, derived from our config; users never write it."""

from typing import Any

import torch

from sft.config.train import TrainConfig

BUCKET_ELEMENTS = 50_000_000
"""Elements that travel between processes at once: 0.2 GB in fp32, large enough for the speed of the network."""


def deepspeed_json(config: TrainConfig, device: torch.device) -> dict[str, Any]:
    """The configuration that makes DeepSpeed run this run.

    No precision is named in it: weights stay fp32 and our own autocast rounds, as in every other engine. Nothing is
    logged, timed or checkpointed by DeepSpeed, and whoever calls it says which micro-batch is a step's last.
    """
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch_packs,
        "gradient_accumulation_steps": 1,  # the number by which DeepSpeed would divide, were it asked to
        "gradient_clipping": config.optimizer.clip_norm if config.deepspeed.zero_stage else 0.0,
        "steps_per_print": None,
        "zero_allow_untested_optimizer": True,  # PyTorch's AdamW, which need not be compiled first
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
        # Only page-locked memory is copied while the GPU computes.
        settings["offload_optimizer"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
    return settings
