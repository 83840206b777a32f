import pytest
import torch

from sft.config.model import ModelConfig
from sft.model.attention import Documents
from sft.model.neox.model import rotary_table
from sft.model.registry import build


def fresh(config: ModelConfig, seed: int) -> dict[str, torch.Tensor]:
    model = build(config, "cpu")
    model.initialise(torch.Generator().manual_seed(seed))
    return model.state_dict()


def test_fresh_weights_are_a_function_of_the_seed(config: ModelConfig) -> None:
    one, again, other = fresh(config, 7), fresh(config, 7), fresh(config, 8)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["embed_out.weight"], other["embed_out.weight"])


def test_fresh_weights_do_not_depend_on_the_global_generator(config: ModelConfig) -> None:
    torch.manual_seed(1)
    one = fresh(config, 7)
    torch.manual_seed(2)
    assert torch.equal(one["gpt_neox.embed_in.weight"], fresh(config, 7)["gpt_neox.embed_in.weight"])


def test_fresh_biases_are_0_norms_1_and_weights_have_the_wanted_spread() -> None:
    config = ModelConfig(vocab_size=500, hidden_size=256, num_layers=2, num_heads=4, intermediate_size=1024)
    for name, value in fresh(config, 0).items():
        if name.endswith("bias"):
            assert not value.any(), name
        elif "norm" in name:
            assert torch.equal(value, torch.ones_like(value)), name
        else:
            writes_to_the_stream = name.endswith(("attention.dense.weight", "dense_4h_to_h.weight"))
            expected = 0.02 / 2.0 if writes_to_the_stream else 0.02  # 2 layers write 4 times: √4
            assert value.std().item() == pytest.approx(expected, rel=0.03), name


def test_a_fresh_model_predicts_all_tokens_about_equally(config: ModelConfig) -> None:
    model = build(config, "cpu")
    model.initialise(torch.Generator().manual_seed(0))
    ids_T = torch.arange(50)
    logits_TV = model.logits(model(ids_T, Documents.of([50])))
    loss = torch.nn.functional.cross_entropy(logits_TV[:-1], ids_T[1:])
    assert loss.item() == pytest.approx(torch.tensor(config.vocab_size).log().item(), abs=0.1)


def test_a_model_can_be_built_without_memory(config: ModelConfig) -> None:
    model = build(config, "meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert not list(model.buffers()), "a buffer would be left unfilled when the weights are loaded"


def test_rotary_tables_are_fp32_and_made_once(config: ModelConfig) -> None:
    cos, sin = rotary_table(config, torch.device("cpu"))
    assert cos.dtype == sin.dtype == torch.float32
    assert cos.shape == sin.shape == (config.max_positions, config.rotary_dims // 2)
    assert rotary_table(config, torch.device("cpu"))[0] is cos
