"""Our GPT-NeoX is transformers' GPT-NeoX, and documents in a pack are strangers to each other."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPTNeoXForCausalLM

from sft.errors import DataError
from sft.model.attention import Documents
from sft.model.kv_cache import KVCache
from sft.model.loss import supervised_loss_sum
from sft.model.neox import model as neox
from sft.model.neox.hf_config import HEAD, NEWER_HEAD
from sft.model.neox.model import NeoX

LENGTHS = (1, 17, 40, 2)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def our_logits(model: NeoX, input_ids_T: Tensor, lengths: tuple[int, ...] = (60,)) -> Tensor:
    return model.logits(model(input_ids_T, Documents.of(lengths)))


def test_logits_equal_transformers(model: NeoX, reference: GPTNeoXForCausalLM, input_ids_T: Tensor) -> None:
    theirs = reference(input_ids_T[None], use_cache=False).logits[0]
    torch.testing.assert_close(our_logits(model, input_ids_T), theirs, **CLOSE)


def test_packed_logits_equal_transformers_one_by_one(
    model: NeoX, reference: GPTNeoXForCausalLM, input_ids_T: Tensor
) -> None:
    alone = [reference(ids[None], use_cache=False).logits[0] for ids in input_ids_T.split(LENGTHS)]
    torch.testing.assert_close(our_logits(model, input_ids_T, LENGTHS), torch.cat(alone), **CLOSE)


def test_loss_and_all_gradients_of_a_pack_equal_transformers_one_by_one(
    model: NeoX, reference: GPTNeoXForCausalLM, input_ids_T: Tensor
) -> None:
    documents = Documents.of(LENGTHS)
    targets_T = torch.where(documents.positions_T.roll(-1) > 0, input_ids_T.roll(-1), -1)
    loss = supervised_loss_sum(model(input_ids_T, documents), model.head_weight, targets_T, chunk_rows=16)
    loss.backward()

    expected = torch.zeros(())
    for ids in input_ids_T.split(LENGTHS):
        logits = reference(ids[None], use_cache=False).logits[0]
        expected = expected + cross_entropy(logits[:-1], ids[1:], reduction="sum")
    expected.backward()

    torch.testing.assert_close(loss, expected, **CLOSE)
    theirs = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        expected_grad = theirs[NEWER_HEAD if name == HEAD else name].grad
        torch.testing.assert_close(
            parameter.grad, expected_grad, **CLOSE, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("changed", range(len(LENGTHS)))
def test_a_document_has_no_influence_on_the_others_not_even_by_a_bit(
    model: NeoX, input_ids_T: Tensor, changed: int
) -> None:
    before = our_logits(model, input_ids_T, LENGTHS).split(LENGTHS)
    pieces = list(input_ids_T.split(LENGTHS))
    pieces[changed] = (pieces[changed] + 1) % model.config.vocab_size
    after = our_logits(model, torch.cat(pieces), LENGTHS).split(LENGTHS)
    same = [torch.equal(one, other) for one, other in zip(before, after, strict=True)]
    assert same == [number != changed for number in range(len(LENGTHS))]


def test_a_loss_in_one_document_sends_no_gradient_into_another(model: NeoX) -> None:
    # Ids differ between the documents, so each embedding row belongs to one of them.
    hidden_TD = model(torch.arange(60), Documents.of(LENGTHS))
    hidden_TD[18:58].square().sum().backward()
    touched = model.gpt_neox.embed_in.weight.grad.abs().sum(1) > 0
    assert touched.nonzero().squeeze(1).tolist() == list(range(18, 58))


@pytest.mark.parametrize("chunks", [(60,), (1,) * 60, (30, 1, 20, 9)])
def test_decoding_with_a_cache_equals_the_whole_sequence_at_once(
    model: NeoX, input_ids_T: Tensor, chunks: tuple[int, ...]
) -> None:
    cache = KVCache(max_tokens=60)
    with torch.inference_mode():
        parts = [model.logits(model(ids, Documents.of([len(ids)]), cache)) for ids in input_ids_T.split(chunks)]
    torch.testing.assert_close(torch.cat(parts), our_logits(model, input_ids_T).detach(), **CLOSE)


def test_a_cache_continues_one_document_only(model: NeoX, input_ids_T: Tensor) -> None:
    with pytest.raises(DataError, match="4 documents for a cache"):
        model(input_ids_T, Documents.of(LENGTHS), KVCache(60))


def test_training_works_after_generating(model: NeoX, input_ids_T: Tensor) -> None:
    neox.rotary_table.cache_clear()  # as in a process whose first forward pass generates
    with torch.inference_mode():
        our_logits(model, input_ids_T)
    our_logits(model, input_ids_T).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_residual_stream_fp32_and_attention_narrow(
    model: NeoX, input_ids_T: Tensor, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []

    def spy(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
        seen.extend((q.dtype, k.dtype, v.dtype))
        return attend(q, k, v, documents)

    attend = neox.attend
    monkeypatch.setattr(neox, "attend", spy)
    streams = []
    for block in model.gpt_neox.layers:
        block.register_forward_hook(lambda _, __, out: streams.append(out.dtype))
    with torch.autocast("cpu", dtype=dtype):
        hidden_TD = model(input_ids_T, Documents.of(LENGTHS))
    assert set(seen) == {dtype}
    assert set(streams) == {torch.float32}
    exact = model(input_ids_T, Documents.of(LENGTHS))
    torch.testing.assert_close(hidden_TD.float(), exact, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("lengths", [(59,), (60, 1), (30, 31)])
def test_documents_must_cover_the_row(model: NeoX, input_ids_T: Tensor, lengths: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="row of 60"):
        model(input_ids_T, Documents.of(lengths))


def test_a_document_longer_than_the_models_positions_is_refused(model: NeoX) -> None:
    ids_T = torch.zeros(129, dtype=torch.int64)
    with pytest.raises(DataError, match="129 tokens for a model with 128"):
        model(ids_T, Documents.of([129]))
    model(ids_T, Documents.of([128, 1]))
