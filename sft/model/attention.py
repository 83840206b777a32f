"""Causal attention over packed documents that never see each other.

Shape letters: T tokens, all documents concatenated; H heads; E dimensions per head; N documents;
K tokens in a cache.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sft.errors import DataError


@dataclass(frozen=True, eq=False)
class Documents:
    """Where the documents lie in a flat row of packed tokens."""

    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    """Start of every document and the end of the last, int32, as the varlen kernels expect it."""
    max_len: int
    positions_T: Tensor
    """Position of each token inside its own document, int64."""

    @classmethod
    def of(cls, lengths: Iterable[int], device: torch.device | str = "cpu") -> "Documents":
        """The documents with these lengths in tokens.

        Raises: DataError if there is none, or an empty one.
        """
        sizes = tuple(lengths)
        if not sizes or min(sizes) < 1:
            raise DataError(f"document lengths {sizes}: expected at least one document, none of them empty")
        # Built on the CPU and sent over whole: no kernel launches and no synchronisation on the device.
        lengths_N = torch.tensor(sizes, device="cpu")
        ends_N = lengths_N.cumsum(0)
        starts_T = (ends_N - lengths_N).repeat_interleave(lengths_N)
        return cls(
            lengths=sizes,
            cu_seqlens=torch.cat((ends_N.new_zeros(1), ends_N)).to(device, torch.int32),
            max_len=max(sizes),
            positions_T=(torch.arange(len(starts_T), device="cpu") - starts_T).to(device),
        )

    @property
    def num_tokens(self) -> int:
        return int(self.positions_T.shape[0])


_Kernel = Callable[[Tensor, Tensor, Tensor, Documents], Tensor]


def attend(q_THE: Tensor, k_THE: Tensor, v_THE: Tensor, documents: Documents) -> Tensor:
    """Each token attends to itself and to the earlier tokens of its own document."""
    _, run = _kernel(q_THE.device, q_THE.dtype, q_THE.shape[-1])
    return run(q_THE, k_THE, v_THE, documents)


def attend_to_cache(q_THE: Tensor, k_KHE: Tensor, v_KHE: Tensor) -> Tensor:
    """The newest T of K tokens of one document attend to themselves and to everything before them."""
    num_new, num_all = q_THE.shape[0], k_KHE.shape[0]
    mask_TK = torch.ones(num_new, num_all, dtype=torch.bool, device=q_THE.device).tril(num_all - num_new)
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in (q_THE, k_KHE, v_KHE))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask_TK)[0].transpose(0, 1)


def backend(device: torch.device | str, dtype: torch.dtype, head_dim: int = 128) -> str:
    """Name of the kernel that `attend` runs for tensors of this device, format and head size."""
    name, _ = _kernel(torch.device(device), dtype, head_dim)
    return name


def _kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[str, _Kernel]:
    fastest = _varlen_kernel() if _varlen_runs(device, dtype, head_dim) else None
    return fastest or ("sdpa per document", _attend_per_document)


def _attend_per_document(q_THE: Tensor, k_THE: Tensor, v_THE: Tensor, documents: Documents) -> Tensor:
    lengths = list(documents.lengths)
    # The leading 1 is a batch: without it the CPU takes the slow kernel that holds the whole score matrix.
    # `split` rather than slices: its backward writes each gradient once instead of once per document.
    q, k, v = (torch.split(tensor.transpose(0, 1)[None], lengths, dim=2) for tensor in (q_THE, k_THE, v_THE))
    out = [scaled_dot_product_attention(*qkv, is_causal=True) for qkv in zip(q, k, v, strict=True)]
    return torch.cat(out, dim=2)[0].transpose(0, 1)


def _varlen_runs(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    # Limits of the FlashAttention-2 kernels behind both implementations.
    return head_dim % 8 == 0 and head_dim <= 256 and torch.cuda.get_device_capability(device) >= (8, 0)


@cache
def _varlen_kernel() -> tuple[str, _Kernel] | None:
    """The best installed kernel for documents of different lengths, and its name."""
    return _flash_attn() or _torch_varlen()


def _flash_attn() -> tuple[str, _Kernel] | None:
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None

    def run(q_THE: Tensor, k_THE: Tensor, v_THE: Tensor, documents: Documents) -> Tensor:
        ends, longest = documents.cu_seqlens, documents.max_len
        # Unlike PyTorch's own kernel, this one needs a flag for deterministic results.
        same_bits = torch.are_deterministic_algorithms_enabled()
        out: Tensor = flash_attn_varlen_func(
            q_THE, k_THE, v_THE, ends, ends, longest, longest, causal=True, deterministic=same_bits
        )
        return out

    return "flash_attn varlen", run


def _torch_varlen() -> tuple[str, _Kernel] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    # PyTorch 2.10 selects causal attention by a flag, later versions by a window without a right side.
    has_flag = "is_causal" in inspect.signature(varlen_attn).parameters
    causal: dict[str, Any] = {"is_causal": True} if has_flag else {"window_size": (-1, 0)}

    def run(q_THE: Tensor, k_THE: Tensor, v_THE: Tensor, documents: Documents) -> Tensor:
        ends, longest = documents.cu_seqlens, documents.max_len
        out = varlen_attn(q_THE, k_THE, v_THE, ends, ends, longest, longest, **causal)
        return cast(Tensor, out)  # a tuple only if more than the result is requested

    return "torch varlen", run
