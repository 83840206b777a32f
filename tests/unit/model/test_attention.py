import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sft.errors import DataError
from sft.model import attention
from sft.model.attention import Documents, attend, attend_to_cache, backend

lengths_strategy = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def reference(q_THE: Tensor, k_THE: Tensor, v_THE: Tensor, lengths: list[int]) -> Tensor:
    """Attention by its definition: all pairs scored, pairs across documents or into the future struck out."""
    document_T = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    allowed_TT = (document_T[:, None] == document_T[None, :]).tril()
    scores_HTT = torch.einsum("qhe,khe->hqk", q_THE, k_THE) / q_THE.shape[-1] ** 0.5
    weights_HTT = scores_HTT.masked_fill(~allowed_TT, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khe->qhe", weights_HTT, v_THE)


def random_qkv(num_tokens: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    return [torch.randn(num_tokens, 3, 8, generator=generator, requires_grad=True) for _ in range(3)]


@settings(max_examples=30, deadline=None)
@given(lengths_strategy)
def test_attention_and_its_gradients_follow_the_definition(lengths: list[int]) -> None:
    qkv = random_qkv(sum(lengths))
    out, expected = attend(*qkv, Documents.of(lengths)), reference(*qkv, lengths)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    weight = torch.linspace(-1, 1, out.numel()).view(out.shape)
    grads, expected_grads = (torch.autograd.grad((result * weight).sum(), qkv) for result in (out, expected))
    torch.testing.assert_close(grads, expected_grads, rtol=1e-5, atol=1e-5)


@given(lengths_strategy)
def test_documents_know_where_everything_lies(lengths: list[int]) -> None:
    documents = Documents.of(lengths)
    assert documents.positions_T.tolist() == [place for length in lengths for place in range(length)]
    assert documents.cu_seqlens.tolist() == [sum(lengths[:number]) for number in range(len(lengths) + 1)]
    assert documents.cu_seqlens.dtype == torch.int32
    assert (documents.max_len, documents.num_tokens) == (max(lengths), sum(lengths))


@pytest.mark.parametrize("lengths", [(), (0,), (3, 0, 2), (5, -1)])
def test_empty_documents_are_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="none of them empty"):
        Documents.of(lengths)


@pytest.mark.parametrize("num_new", [1, 4, 11])
def test_cached_attention_sees_everything_before_and_nothing_after(num_new: int) -> None:
    q, k, v = random_qkv(11)
    expected = reference(q, k, v, [11])[-num_new:]
    torch.testing.assert_close(attend_to_cache(q[-num_new:], k, v), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cpu_runs_one_document_at_a_time(dtype: torch.dtype) -> None:
    assert backend("cpu", dtype) == "sdpa per document"


def test_gradients_flow_into_views_of_one_fused_tensor() -> None:
    qkv_TH3E = torch.randn(10, 3, 3, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    out = attend(*qkv_TH3E.unbind(2), Documents.of([4, 6]))
    expected = reference(*qkv_TH3E.unbind(2), [4, 6])
    one, other = (torch.autograd.grad(result.square().sum(), qkv_TH3E)[0] for result in (out, expected))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("parameters", "keyword"),
    [("is_causal=False", {"is_causal": True}), ("window_size=(-1, -1)", {"window_size": (-1, 0)})],
)
def test_both_generations_of_torchs_kernel_are_asked_for_causal_attention(
    parameters: str, keyword: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    calls: list[tuple[object, ...]] = []
    scope = {"calls": calls}
    exec(f"def varlen_attn(q, k, v, cq, ck, mq, mk, *, {parameters}, **rest):\n calls.append(locals())", scope)
    monkeypatch.setattr(varlen, "varlen_attn", scope["varlen_attn"])
    kernel = attention._torch_varlen()
    assert kernel is not None
    kernel[1](*random_qkv(5), Documents.of([2, 3]))
    (call,) = calls
    assert {name: call[name] for name in keyword} == keyword
    assert call["cq"].tolist() == call["ck"].tolist() == [0, 2, 5]
    assert call["mq"] == call["mk"] == 3
