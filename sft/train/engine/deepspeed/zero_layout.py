"""Where ZeRO keeps the elements of each parameter, so that any engine can resume from a checkpoint of any other."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sft.train.engine.base import Kind, TensorSlice, TensorSource


@dataclass(frozen=True, eq=False)
class Share:
    """Contiguous elements of a flattened parameter that this process updates."""

    name: str
    shape: torch.Size
    """Shape of the whole parameter."""
    start: int
    size: int
    holder: Tensor
    """The fp32 tensor that AdamW updates: the parameter, or a flat tensor with shares of many."""
    offset: int
    """Offset of the elements in the flattened holder."""

    def slice_of(self, kind: Kind, tensor: Tensor) -> TensorSlice:
        """The elements in the holder, or in one of its moments."""
        flat, is_whole = self._elements(tensor), self.size == self.shape.numel()
        return TensorSlice(kind, self.name, self.start, flat.view(self.shape) if is_whole else flat, is_whole=is_whole)

    def fill(self, kind: Kind, tensor: Tensor, source: TensorSource) -> None:
        """Set the elements in the holder, or in one of its moments."""
        self._elements(tensor).copy_(source.flat(kind, self.name, self.start, self.start + self.size))

    def _elements(self, tensor: Tensor) -> Tensor:
        return tensor.view(-1)[self.offset : self.offset + self.size]


def shares(model: nn.Module, zero: Any) -> Iterator[Share]:
    """What this process updates of each parameter; `zero` is DeepSpeed's optimizer, or None in stage 0."""
    for name, parameter in model.named_parameters():
        if zero is None:
            yield Share(name, parameter.shape, 0, parameter.numel(), parameter, 0)
        elif hasattr(parameter, "ds_id"):
            yield from _of_stage_3(name, parameter, zero)
        else:
            yield from _of_stage_1_or_2(name, parameter, zero)


def owned(found: Iterable[Share], zero: Any) -> Iterator[Share]:
    """The shares that this process saves: in stage 0, in which every process has everything, an equal part of each."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    for share in found:
        first, last = (share.size * number // world_size for number in (rank, rank + 1))
        part = replace(share, start=first, size=last - first, offset=first) if zero is None else share
        if part.size:
            yield part


@torch.no_grad()
def spread(zero: Any) -> None:
    """Copy weights from the holders, where they were set, to the tensors that the forward pass reads."""
    if zero is None:
        return
    if hasattr(zero, "update_lp_params"):  # stages 1 and 2
        zero.update_lp_params()
        return
    zero._partition_all_parameters()
    for number in range(len(zero.fp16_groups)):
        zero._reassign_or_swap_out_partitioned_parameters(number)
    zero._post_step(set())  # gathers the small parameters, which stay whole


def _of_stage_1_or_2(name: str, parameter: Any, zero: Any) -> Iterator[Share]:
    """All parameters are concatenated in one flat tensor, of which each process has an equal part."""
    place = parameter._hp_mapping
    if place is not None:
        holder = zero.single_partition_of_fp32_groups[place.param_group_index]
        part, flat = place.lp_fragment_address, place.hp_fragment_address
        yield Share(name, parameter.shape, part.start, part.numel, holder, flat.start)


def _of_stage_3(name: str, parameter: Any, zero: Any) -> Iterator[Share]:
    """Each process has an equal part of every parameter, the last of which may end in padding."""
    group, offset, num_padded = zero.grad_position[zero.get_param_id(parameter)]
    start = dist.get_rank() * num_padded
    size = min(num_padded, parameter.ds_numel - start)
    if size > 0:
        yield Share(name, parameter.ds_shape, start, size, zero.fp32_partitioned_groups_flat[group], offset)
