import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sft.model import loss as loss_module
from sft.model.loss import supervised_loss_sum, token_losses

NUM_TOKENS, WIDTH, VOCAB = 37, 16, 53


def case(
    dtype: torch.dtype = torch.float32, share: float = 0.7, spread: float = 0.5, num_tokens: int = NUM_TOKENS
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden_TD = torch.randn(num_tokens, WIDTH, generator=generator, dtype=dtype)
    head_VD = torch.randn(VOCAB, WIDTH, generator=generator, dtype=dtype) * spread
    targets_T = torch.randint(VOCAB, (num_tokens,), generator=generator)
    targets_T[torch.rand(num_tokens, generator=generator) >= share] = -1
    return hidden_TD.requires_grad_(), head_VD.requires_grad_(), targets_T


def plain(hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor) -> Tensor:
    return cross_entropy(hidden_TD @ head_VD.t(), targets_T, ignore_index=-1, reduction="sum")


@pytest.mark.parametrize("chunk_rows", [1, 5, 26, 2048])
@pytest.mark.parametrize("share", [0.1, 0.7, 1.0])
@pytest.mark.parametrize("upstream", [1.0, 0.125, 4096.0])
def test_value_and_gradients_equal_plain_cross_entropy(chunk_rows: int, share: float, upstream: float) -> None:
    hidden_TD, head_VD, targets_T = case(share=share)
    loss = supervised_loss_sum(hidden_TD, head_VD, targets_T, chunk_rows)
    expected = plain(hidden_TD, head_VD, targets_T)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    grads, expected_grads = (torch.autograd.grad(value * upstream, (hidden_TD, head_VD)) for value in (loss, expected))
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad / upstream, expected_grad / upstream, rtol=1e-6, atol=2e-6)


def test_a_frozen_head_gets_no_gradient_and_changes_no_other() -> None:
    (hidden_TD, head_VD, targets_T), (other_TD, _, _) = case(), case()
    supervised_loss_sum(hidden_TD, head_VD, targets_T, 5).backward()
    frozen_VD = head_VD.detach()
    supervised_loss_sum(other_TD, frozen_VD, targets_T, 5).backward()
    assert frozen_VD.grad is None
    assert torch.equal(hidden_TD.grad, other_TD.grad)


def test_gradients_are_the_derivatives_of_the_loss() -> None:
    hidden_TD, head_VD, targets_T = case(torch.float64, num_tokens=6)
    targets_T = torch.where(targets_T < 0, targets_T, targets_T % 12)
    small = [tensor.detach()[:12, :4].clone().requires_grad_() for tensor in (hidden_TD, head_VD)]
    assert torch.autograd.gradcheck(lambda h, w: supervised_loss_sum(h, w, targets_T, 2), small)


def test_a_row_without_targets_has_loss_0_and_zero_gradients() -> None:
    hidden_TD, head_VD, _ = case()
    loss = supervised_loss_sum(hidden_TD, head_VD, torch.full((NUM_TOKENS,), -1))
    loss.backward()
    assert loss.item() == 0
    assert not hidden_TD.grad.any()
    assert not head_VD.grad.any()


def test_positions_without_target_get_no_gradient() -> None:
    hidden_TD, head_VD, targets_T = case()
    supervised_loss_sum(hidden_TD, head_VD, targets_T).backward()
    assert (hidden_TD.grad.abs().sum(1) > 0).tolist() == (targets_T >= 0).tolist()


def test_extreme_logits_stay_finite() -> None:
    hidden_TD, head_VD, targets_T = case(spread=500.0)
    loss = supervised_loss_sum(hidden_TD, head_VD, targets_T)
    torch.testing.assert_close(loss, plain(hidden_TD, head_VD, targets_T))
    loss.backward()
    assert hidden_TD.grad.isfinite().all()
    assert head_VD.grad.isfinite().all()


def test_without_gradients_the_value_is_the_same() -> None:
    hidden_TD, head_VD, targets_T = case()
    with torch.no_grad():
        value = supervised_loss_sum(hidden_TD, head_VD, targets_T)
    assert not value.requires_grad
    torch.testing.assert_close(value, supervised_loss_sum(hidden_TD, head_VD, targets_T).detach())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
def test_autocast_multiplies_narrow_and_sums_wide(dtype: torch.dtype, tolerance: float) -> None:
    hidden_TD, head_VD, targets_T = case()
    with torch.autocast("cpu", dtype=dtype):
        loss = supervised_loss_sum(hidden_TD, head_VD, targets_T, 8)
    loss.backward()
    narrow_h, narrow_w = (value.detach().to(dtype).float().requires_grad_() for value in (hidden_TD, head_VD))
    expected = plain(narrow_h, narrow_w, targets_T)
    expected.backward()
    assert loss.dtype == hidden_TD.grad.dtype == head_VD.grad.dtype == torch.float32
    # Operands were rounded, sums were not: the loss of the rounded operands is met exactly.
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(hidden_TD.grad, narrow_h.grad, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(head_VD.grad, narrow_w.grad, rtol=tolerance, atol=tolerance)


def test_fp16_keeps_gradients_of_improbable_tokens() -> None:
    # One token is almost certain; the others' probabilities are below fp16's smallest number, 6e-8.
    hidden_TD = torch.ones(1, 1, requires_grad=True)
    head_VD = torch.tensor([[17.0], [0.0], [0.0]], requires_grad=True)
    with torch.autocast("cpu", dtype=torch.float16):
        supervised_loss_sum(hidden_TD, head_VD, torch.tensor([0])).backward()
    assert head_VD.grad[1].item() == pytest.approx(torch.tensor(-17.0).exp().item(), rel=0.01)


def test_token_losses_name_each_supervised_position() -> None:
    hidden_TD, head_VD, targets_T = case()
    nll_S, correct_S = token_losses(hidden_TD, head_VD, targets_T, 4)
    supervised = targets_T >= 0
    logits_SV = (hidden_TD @ head_VD.t())[supervised]
    expected = cross_entropy(logits_SV, targets_T[supervised], reduction="none")
    torch.testing.assert_close(nll_S, expected.detach(), rtol=1e-6, atol=1e-6)
    assert torch.equal(correct_S, logits_SV.argmax(-1) == targets_T[supervised])
    assert (nll_S.dtype, nll_S.requires_grad) == (torch.float32, False)


def test_token_losses_of_a_row_without_targets_are_empty() -> None:
    hidden_TD, head_VD, _ = case()
    nll_S, correct_S = token_losses(hidden_TD, head_VD, torch.full((NUM_TOKENS,), -1))
    assert nll_S.shape == correct_S.shape == (0,)
    assert correct_S.dtype == torch.bool


def test_no_more_than_a_chunk_of_logits_is_ever_held(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    softmax = loss_module._softmax_

    def counting(logits_CV: Tensor, targets_C: Tensor) -> Tensor:
        rows.append(len(logits_CV))
        return softmax(logits_CV, targets_C)

    monkeypatch.setattr(loss_module, "_softmax_", counting)
    hidden_TD, head_VD, targets_T = case()
    supervised_loss_sum(hidden_TD, head_VD, targets_T, 10)
    assert max(rows) == 10
    assert sum(rows) == int((targets_T >= 0).sum())
