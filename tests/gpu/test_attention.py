"""The CUDA kernels against exact attention, one document at a time."""

import pytest
import torch
from torch import Tensor

from sft.model import attention
from sft.model.attention import Documents, attend, backend

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LENGTHS = {
    "one full pack": [4096],
    "a mix": [1, 700, 17, 2048, 3, 128, 1199],
    "many short": [17] * 200 + [1] * 50,
}
NARROW = [torch.bfloat16, torch.float16]


def random_qkv(num_tokens: int, dtype: torch.dtype, head_dim: int = 128) -> list[Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    qkv_TH3E = torch.randn(num_tokens, 4, 3, head_dim, generator=generator, device="cuda").to(dtype)
    return [part.detach().requires_grad_() for part in qkv_TH3E.unbind(2)]


def exact(qkv: list[Tensor], documents: Documents) -> tuple[list[Tensor], Tensor]:
    wide = [part.detach().float().requires_grad_() for part in qkv]
    return wide, attention._attend_per_document(*wide, documents)


@pytest.mark.parametrize("dtype", NARROW)
def test_a_varlen_kernel_is_in_use(dtype: torch.dtype) -> None:
    assert backend("cuda", dtype).endswith("varlen")
    assert backend("cuda", torch.float32) == "sdpa per document"


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_output_and_gradients_are_as_exact_as_the_format(lengths: list[int], dtype: torch.dtype, head_dim: int) -> None:
    documents = Documents.of(lengths, "cuda")
    qkv = random_qkv(documents.num_tokens, dtype, head_dim)
    out = attend(*qkv, documents)
    wide, expected = exact(qkv, documents)
    weight = torch.randn(expected.shape, generator=torch.Generator("cuda").manual_seed(1), device="cuda").to(dtype)
    grads = torch.autograd.grad(out, qkv, weight)
    expected_grads = torch.autograd.grad(expected, wide, weight.float())
    assert out.dtype == dtype
    # A few roundings of the format, relative to the largest value.
    tolerance = 8 * torch.finfo(dtype).eps
    for found, wanted in zip((out, *grads), (expected, *expected_grads), strict=True):
        assert (found.float() - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("dtype", [*NARROW, torch.float32])
def test_a_document_has_no_influence_on_the_others_not_even_by_a_bit(dtype: torch.dtype) -> None:
    lengths = LENGTHS["a mix"]
    documents = Documents.of(lengths, "cuda")
    qkv = random_qkv(documents.num_tokens, dtype)
    before = attend(*qkv, documents).split(lengths)
    with torch.no_grad():
        for part in qkv:
            part[718:2766] += 1
    after = attend(*qkv, documents).split(lengths)
    same = [torch.equal(one, other) for one, other in zip(before, after, strict=True)]
    assert same == [number != 3 for number in range(len(lengths))]


@pytest.mark.parametrize("dtype", NARROW)
def test_deterministic_runs_get_the_same_gradients_bit_for_bit(dtype: torch.dtype) -> None:
    documents = Documents.of(LENGTHS["a mix"], "cuda")
    qkv = random_qkv(documents.num_tokens, dtype)
    torch.use_deterministic_algorithms(True)
    try:
        runs = [torch.autograd.grad(attend(*qkv, documents).square().sum(), qkv) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for run in runs[1:] for one, other in zip(runs[0], run, strict=True))
