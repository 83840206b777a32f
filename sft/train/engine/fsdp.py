"""FSDP2: every process keeps a share of each parameter, and gathers whole ones only for their computation."""

import math

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from sft.errors import ConfigError
from sft.model.objectives.base import Objective

REPLICAS, SHARDS = "replicas", "shards"


def make_mesh(device: torch.device, world_size: int, shard_size: int | None) -> DeviceMesh:
    """The device mesh of replicas × shards: each group of `shard_size` processes holds the model once.

    Raises: ConfigError if the number of processes is not divisible by `shard_size`.
    """
    size = world_size if shard_size is None else shard_size
    if world_size % size:
        raise ConfigError(
            f"fsdp.shard_size={size}: {world_size} processes cannot be grouped so",
            hint="take a divisor, such as the number of GPUs per node, or null for one group",
        )
    return init_device_mesh(device.type, (world_size // size, size), mesh_dim_names=(REPLICAS, SHARDS))


def shard(objective: Objective, mesh: DeviceMesh, half: torch.dtype | None) -> None:
    """Shard every parameter among the processes.

    Linear layers inside the blocks are gathered in half precision if that is what they are computed in: rounding
    before sending gives the same bits as rounding afterwards, at half the traffic. Everything else is gathered in fp32.
    Gradients are added up in fp32.
    """
    grid = mesh if mesh.size(0) > 1 else mesh[SHARDS]
    exact = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    rounded = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module in objective.model.linear_modules():
        fully_shard(module, mesh=grid, mp_policy=rounded)
    # Norms, embedding and head stay whole from the forward to the backward pass: they are small, or used in both.
    fully_shard(objective, mesh=grid, mp_policy=exact, reshard_after_forward=False)
    for module in objective.modules():
        if isinstance(module, FSDPModule):
            # The loss is divided by the tokens of all processes already: gradients are added up, as they are.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def reduce_gradients(objective: Objective, *, now: bool) -> None:
    """Set whether the next backward pass reduces gradients over all processes: only the last one of a step has to."""
    if isinstance(objective, FSDPModule):
        objective.set_requires_gradient_sync(now)


def local(tensor: Tensor) -> Tensor:
    """This process's share of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_start(parameter: Tensor) -> int:
    """The start of this process's share in the flattened parameter."""
    if not isinstance(parameter, DTensor):
        return 0
    _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return int(offset[0]) * math.prod(parameter.shape[1:])
