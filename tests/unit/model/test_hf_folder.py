import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

from sft.config.model import ModelConfig
from sft.errors import ConfigError, DataError, NumericsError
from sft.model.attention import Documents
from sft.model.hf_folder import load_weights, read_config, stored_weights, write_folder
from sft.model.neox.hf_config import config_json
from sft.model.neox.model import NeoX
from sft.model.registry import build, parameter_shapes
from sft.model.weight_files import INDEX, WEIGHTS

ONE_FILE = 10**9


@pytest.fixture
def folder(model: NeoX, tmp_path: Path) -> Path:
    write_folder(model.state_dict(), model.config, tmp_path, torch.float32, ONE_FILE)
    return tmp_path


def loaded(folder: Path) -> NeoX:
    model = build(read_config(folder), "cpu")
    load_weights(model, folder)
    return model


def assert_same_logits(ours: NeoX, theirs: GPTNeoXForCausalLM, input_ids_T: Tensor) -> None:
    with torch.inference_mode():
        our_logits = ours.logits(ours(input_ids_T, Documents.of([len(input_ids_T)])))
        torch.testing.assert_close(our_logits, theirs.eval()(input_ids_T[None]).logits[0], rtol=1e-5, atol=1e-5)


def rewrite(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


# ------------------------------------------------------------------------------------ both directions


@pytest.mark.parametrize("max_shard_size", ["1GB", "60KB"])
def test_a_folder_written_by_transformers_gives_the_same_logits(
    tmp_path: Path, input_ids_T: Tensor, max_shard_size: str
) -> None:
    torch.manual_seed(0)
    theirs = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=97,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=80,
            max_position_embeddings=64,
            initializer_range=0.2,
        )
    )
    theirs.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / INDEX).is_file() == (max_shard_size == "60KB")
    assert_same_logits(loaded(tmp_path), theirs, input_ids_T)


def test_transformers_reads_the_same_shape_and_token_ids(folder: Path, config: ModelConfig) -> None:
    theirs = AutoConfig.from_pretrained(folder)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (0, 0)
    assert theirs.rope_parameters["partial_rotary_factor"] == config.rotary_pct
    assert theirs.max_position_embeddings == config.max_positions


@pytest.mark.parametrize("max_shard_bytes", [ONE_FILE, 60_000, 1])
def test_transformers_reads_our_folder_without_missing_or_unexpected_keys(
    model: NeoX, tmp_path: Path, input_ids_T: Tensor, max_shard_bytes: int
) -> None:
    write_folder(model.state_dict(), model.config, tmp_path, torch.float32, max_shard_bytes)
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert_same_logits(model, theirs, input_ids_T)


@pytest.mark.parametrize("max_shard_bytes", [ONE_FILE, 60_000])
def test_our_folder_gives_back_the_same_bits(model: NeoX, tmp_path: Path, max_shard_bytes: int) -> None:
    write_folder(model.state_dict(), model.config, tmp_path, torch.float32, max_shard_bytes)
    again = loaded(tmp_path)
    assert again.config == model.config
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_head_has_its_published_name(folder: Path) -> None:
    names = set(load_file(folder / WEIGHTS))
    assert "embed_out.weight" in names
    assert "lm_head.weight" not in names


def test_the_head_is_read_under_its_newer_name_too(model: NeoX, folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["lm_head.weight"] = tensors.pop("embed_out.weight")
    save_file(tensors, folder / WEIGHTS)
    assert torch.equal(loaded(folder).head_weight, model.head_weight)


def test_tables_stored_by_older_writers_are_ignored(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    for name in ("bias", "masked_bias", "rotary_emb.inv_freq"):
        tensors[f"gpt_neox.layers.0.attention.{name}"] = torch.zeros(3)
    before = loaded(folder).state_dict()
    save_file(tensors, folder / WEIGHTS)
    after = loaded(folder).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_equal_weights_give_equal_bytes(model: NeoX, tmp_path: Path) -> None:
    folders = (tmp_path / "one", tmp_path / "two")
    for folder in folders:
        folder.mkdir()
        write_folder(model.state_dict(), model.config, folder, torch.float16, 40_000)
    one, two = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert one == two
    assert len(one) > 3


def test_weights_can_be_read_by_whoever_can_enter_the_folder(folder: Path) -> None:
    assert (folder / WEIGHTS).stat().st_mode & 0o777 == 0o644


def test_weight_files_stay_below_their_limit(model: NeoX, tmp_path: Path) -> None:
    limit = 60_000
    write_folder(model.state_dict(), model.config, tmp_path, torch.bfloat16, limit)
    header_bytes = 4_000
    assert all(path.stat().st_size < limit + header_bytes for path in tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_cast_when_written_and_widened_when_read(model: NeoX, tmp_path: Path, dtype: torch.dtype) -> None:
    write_folder(model.state_dict(), model.config, tmp_path, dtype, ONE_FILE)
    assert {tensor.dtype for tensor in load_file(tmp_path / WEIGHTS).values()} == {dtype}
    again = loaded(tmp_path)
    assert torch.equal(again.head_weight, model.head_weight.to(dtype).float())


@pytest.mark.parametrize(("value", "hint"), [(1e6, "bf16"), (float("nan"), "earlier checkpoint")])
def test_a_weight_that_is_not_finite_in_the_format_is_refused(
    model: NeoX, tmp_path: Path, value: float, hint: str
) -> None:
    with torch.no_grad():
        model.embed_out.weight[3, 4] = value
    with pytest.raises(NumericsError, match=rf"embed_out\.weight.*\n.*{hint}"):
        write_folder(model.state_dict(), model.config, tmp_path, torch.float16, ONE_FILE)


def test_parameters_are_asked_for_once_and_in_order(model: NeoX, tmp_path: Path) -> None:
    asked = []

    class Gathering(dict[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            asked.append(name)
            return super().__getitem__(name)

    write_folder(Gathering(model.state_dict()), model.config, tmp_path, torch.float32, 60_000)
    assert asked == list(parameter_shapes(model.config))


def test_stored_weights_are_read_one_by_one(model: NeoX, folder: Path) -> None:
    stored = stored_weights(folder, model.config)
    assert list(stored) == list(parameter_shapes(model.config))
    assert len(stored) == len(list(model.parameters()))
    assert torch.equal(stored["embed_out.weight"], model.head_weight)


# ------------------------------------------------------------------------------------ weights that do not fit


def test_everything_that_does_not_fit_is_named_at_once(model: NeoX, folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["gpt_neox.final_layer_norm.bias"], tensors["gpt_neox.layers.2.mlp.dense_4h_to_h.bias"]
    tensors["gpt_neox.layers.3.mlp.dense_4h_to_h.bias"] = torch.zeros(64)
    tensors["embed_out.weight"] = torch.zeros(96, 64)
    tensors["lm_head.weight"] = torch.zeros(96, 64)
    tensors["gpt_neox.embed_in.weight"] = torch.zeros(97, 64, dtype=torch.int8)
    save_file(tensors, folder / WEIGHTS)
    target = build(model.config, "cpu")
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(DataError) as caught:
        load_weights(target, folder)
    for complaint in (
        "gpt_neox.final_layer_norm.bias is missing",
        "gpt_neox.layers.2.mlp.dense_4h_to_h.bias is missing",
        "gpt_neox.layers.3.mlp.dense_4h_to_h.bias is not expected",
        "embed_out.weight has shape [96, 64], expected [97, 64]",
        "lm_head.weight is there twice",
        "gpt_neox.embed_in.weight holds I8 numbers",
    ):
        assert complaint in caught.value.what
    after = target.state_dict()
    assert all(torch.equal(before[name].nan_to_num(), after[name].nan_to_num()) for name in before)


def test_pickled_weights_are_never_opened(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="save_pretrained"):
        loaded(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [(WEIGHTS, None), (WEIGHTS, b"cut"), (INDEX, b"{"), (INDEX, b'{"weight_map": {"a": "absent.safetensors"}}')],
)
def test_damaged_or_absent_weights_are_data_errors(folder: Path, name: str, content: bytes | None) -> None:
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(DataError):
        loaded(folder)


# ------------------------------------------------------------------------------------ config.json


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rotary_pct": 0.5, "rotary_emb_base": 500}, (0.5, 500.0)),
        ({"rope_parameters": {"rope_theta": 700.0, "partial_rotary_factor": 0.5}}, (0.5, 700.0)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 900}}, (0.25, 900.0)),
        ({}, (0.25, 10000.0)),
    ],
)
def test_rotary_settings_are_read_under_old_and_new_names(
    config: ModelConfig, tmp_path: Path, rope: dict[str, Any], expected: tuple[float, float]
) -> None:
    raw = config_json(config, torch.float32)
    for name in ("rotary_pct", "rotary_emb_base", "rope_parameters"):
        del raw[name]
    (tmp_path / "config.json").write_text(json.dumps({**raw, **rope}))
    found = read_config(tmp_path)
    assert (found.rotary_pct, found.rotary_base) == expected


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model_type": "llama"}, "model_type='llama'"),
        ({"hidden_act": "gelu_fast"}, "hidden_act='gelu_fast'"),
        ({"use_parallel_residual": False}, "use_parallel_residual=False"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings=True"),
        ({"attention_bias": False}, "attention_bias=False"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_type='linear'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": None}, "hidden_size=None"),
        ({"hidden_size": 50}, "not divisible"),
    ],
)
def test_configs_of_other_models_are_refused(folder: Path, changes: dict[str, Any], complaint: str) -> None:
    rewrite(folder / "config.json", **changes)
    with pytest.raises(ConfigError) as caught:
        read_config(folder)
    assert complaint in str(caught.value)


@pytest.mark.parametrize("content", [None, b"{", b"[]", b"\xff"])
def test_an_absent_or_damaged_config_is_a_config_error(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError):
        read_config(tmp_path)
