from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from sft.config.inference import GenerationConfig
from sft.config.model import ModelConfig
from sft.errors import DataError, NumericsError
from sft.inference.generate import _choose, generate
from sft.model.attention import Documents
from sft.model.neox.hf_config import HEAD, NEWER_HEAD, config_json
from sft.model.neox.model import NeoX

VOCAB = 50
PROMPT = [7, 3, 11, 2]
GREEDY = GenerationConfig(max_new_tokens=20)


@pytest.fixture
def model() -> NeoX:
    config = ModelConfig(
        vocab_size=VOCAB, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64, max_positions=40
    )
    model = NeoX(config)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.3, generator=generator)
    return model


def answer(
    model: NeoX, config: GenerationConfig = GREEDY, stop_ids: tuple[int, ...] = (), num_ids: int = VOCAB
) -> list[int]:
    return list(generate(model, PROMPT, stop_ids, config, num_ids))


def sampled(num_draws: int, **settings: float) -> Counter[int]:
    logits_V = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(0)
    config = GenerationConfig(**settings)  # type: ignore[arg-type]
    return Counter(_choose(logits_V, config, generator) for _ in range(num_draws))


def test_greedy_ids_equal_those_of_transformers(model: NeoX) -> None:
    reference = GPTNeoXForCausalLM(GPTNeoXConfig(**config_json(model.config, torch.float32)))
    weights = {NEWER_HEAD if name == HEAD else name: value for name, value in model.state_dict().items()}
    reference.load_state_dict(weights)
    theirs = reference.eval().generate(
        torch.tensor([PROMPT]), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=1
    )
    ours = answer(model)
    assert PROMPT + ours == theirs[0].tolist()
    assert len(set(ours)) > 3, "a constant answer would prove little"


def test_greedy_ids_are_the_likeliest_after_the_whole_text_so_far(model: NeoX) -> None:
    text = list(PROMPT)
    for token_id in answer(model):
        logits_TV = model.logits(model(torch.tensor(text), Documents.of([len(text)])))
        assert token_id == int(logits_TV[-1].argmax())
        text.append(token_id)


def test_a_stop_id_ends_the_answer_and_is_not_part_of_it(model: NeoX) -> None:
    whole = answer(model)
    stop = whole[5]
    assert answer(model, stop_ids=(49, stop)) == whole[: whole.index(stop)]


def test_ids_arrive_one_by_one(model: NeoX) -> None:
    calls: list[int] = []
    model.gpt_neox.embed_in.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    stream: Iterator[int] = generate(model, PROMPT, (), GREEDY, VOCAB)
    next(stream)
    assert calls == [len(PROMPT)]
    next(stream)
    assert calls == [len(PROMPT), 1]


@pytest.mark.parametrize(("max_new_tokens", "expected"), [(1, 1), (20, 20), (36, 36), (1000, 36)])
def test_the_answer_ends_at_its_limit_or_at_the_models_positions(
    model: NeoX, max_new_tokens: int, expected: int
) -> None:
    assert len(answer(model, GenerationConfig(max_new_tokens=max_new_tokens))) == expected


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_rows_beyond_the_tokenizer_are_never_chosen(model: NeoX, temperature: float) -> None:
    with torch.no_grad():
        model.head_weight[30:] *= 20
    config = GenerationConfig(max_new_tokens=30, temperature=temperature)
    assert max(answer(model, config)) >= 30
    assert max(answer(model, config, num_ids=30)) < 30


@pytest.mark.parametrize("prompt", [[], [1] * 40])
def test_a_prompt_that_is_empty_or_leaves_no_room_is_refused(model: NeoX, prompt: list[int]) -> None:
    with pytest.raises(DataError, match=f"prompt of {len(prompt)} tokens"):
        next(generate(model, prompt, (), GREEDY, VOCAB))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_broken_model_says_so(model: NeoX, temperature: float) -> None:
    with torch.no_grad():
        model.head_weight[0, 0] = float("nan")
    with pytest.raises(NumericsError, match="not finite"):
        answer(model, GenerationConfig(temperature=temperature))


def test_sampling_is_a_function_of_its_seed(model: NeoX) -> None:
    def draw(seed: int) -> list[int]:
        return answer(model, GenerationConfig(max_new_tokens=20, temperature=1.5, seed=seed))

    torch.manual_seed(1)
    one = draw(5)
    torch.manual_seed(2)
    assert draw(5) == one
    assert draw(6) != one


def test_sampling_follows_the_probabilities() -> None:
    counts = sampled(4000, temperature=1.0)
    assert [counts[token_id] / 4000 for token_id in range(4)] == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(1.0, {0, 1, 2, 3}), (0.96, {0, 1, 2, 3}), (0.9, {0, 1, 2}), (0.7, {0, 1}), (0.1, {0})]
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: set[int]) -> None:
    assert set(sampled(2000, temperature=1.0, top_p=top_p)) == kept


def test_a_low_temperature_comes_close_to_greedy() -> None:
    assert set(sampled(500, temperature=0.02)) == {0}
