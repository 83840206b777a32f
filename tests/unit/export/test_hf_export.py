import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)

from sft.chat.conversation import Message
from sft.chat.encode import encode_prompt
from sft.chat.formats.base import ChatFormat
from sft.chat.formats.stablelm import CARD_SYSTEM_PROMPT, TAGS
from sft.chat.tokenizer import ChatTokenizer
from sft.config.inference import ExportConfig
from sft.config.inference import GenerationConfig as OurGeneration
from sft.errors import ConfigError, DataError, StorageError
from sft.export import hf_export as module
from sft.export.hf_export import export
from sft.inference.generate import generate
from sft.inference.load import load

SYSTEM = "Be brief. Say 'no' and \"yes\".\n"


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "small-chat"
    export(checkpoint, out, ExportConfig(dtype="fp32"))
    return out


def left_behind(out: Path) -> list[Path]:
    return list(out.parent.iterdir())


def test_the_folder_holds_what_readers_look_for(exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_our_own_commands_read_the_folder_too(exported: Path, checkpoint: Path) -> None:
    one, other = (load(path, torch.device("cpu")) for path in (exported, checkpoint))
    assert one.tokenizer.sha256 == other.tokenizer.sha256
    weights = other.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in one.model.state_dict().items())


@pytest.mark.parametrize("text", ["the tide\n\n  rises", "東京 e\u0301 🌍", "    indented", "<|endoftext|", ""])
def test_transformers_tokenizes_text_as_training_did(exported: Path, tokenizer: ChatTokenizer, text: str) -> None:
    theirs = AutoTokenizer.from_pretrained(exported)
    assert theirs.encode(text) == tokenizer.encode([text])[0]


def test_transformers_knows_the_control_tokens(exported: Path, tokenizer: ChatTokenizer) -> None:
    theirs = AutoTokenizer.from_pretrained(exported)
    assert theirs.encode("<|SYSTEM|><|USER|><|ASSISTANT|>") == [
        tokenizer.id_of("<|SYSTEM|>"),
        tokenizer.id_of("<|USER|>"),
        tokenizer.id_of("<|ASSISTANT|>"),
    ]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id) == (tokenizer.end_id,) * 3
    assert theirs.pad_token_id == tokenizer.pad_id
    assert theirs.model_max_length == 256
    assert theirs.decode(theirs.encode("<|USER|>how , so ?"), skip_special_tokens=True) == "how , so ?"


def test_tokenizer_settings_have_the_names_that_older_readers_know(exported: Path) -> None:
    settings = json.loads((exported / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["additional_special_tokens"] == list(TAGS)
    assert "extra_special_tokens" not in settings
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]
    assert "<|ASSISTANT|>" in settings["chat_template"]


@pytest.mark.parametrize(("system", "expected"), [(None, CARD_SYSTEM_PROMPT), (SYSTEM, SYSTEM)])
def test_chats_without_system_text_get_the_configured_one(
    checkpoint: Path, tmp_path: Path, tokenizer: ChatTokenizer, system: str | None, expected: str
) -> None:
    export(checkpoint, tmp_path / "out", ExportConfig(dtype="fp32", system=system))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = theirs.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True, return_dict=False)
    assert ids == encode_prompt([Message("user", "hi")], expected, tokenizer)


def test_generation_stops_at_the_five_ids_of_the_card(exported: Path, tokenizer: ChatTokenizer) -> None:
    settings = GenerationConfig.from_pretrained(exported)
    user, assistant, system, pad, end = settings.eos_token_id
    assert [system, user, assistant] == [tokenizer.id_of(tag) for tag in TAGS]
    assert (pad, end) == (1, 0)
    assert (settings.bos_token_id, settings.pad_token_id) == (0, 1)
    config = json.loads((exported / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (0, 0, 1)


@pytest.mark.parametrize(("dtype", "stored"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_weights_have_the_asked_format(checkpoint: Path, tmp_path: Path, dtype: Any, stored: torch.dtype) -> None:
    export(checkpoint, tmp_path / "out", ExportConfig(dtype=dtype, max_shard_bytes=60_000))
    files = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(files) > 1
    assert {tensor.dtype for file in files for tensor in load_file(file).values()} == {stored}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == stored


def test_two_exports_have_equal_bytes(checkpoint: Path, tmp_path: Path) -> None:
    for parent in ("one", "two"):
        export(checkpoint, tmp_path / parent / "chat", ExportConfig())
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / parent / "chat").iterdir()} for parent in ("one", "two")
    )
    assert one == two


# ------------------------------------------------------------------------------------ using it


def test_the_usage_of_the_stablelm_card_runs(exported: Path, tokenizer: ChatTokenizer) -> None:
    class StopOnTokens(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> bool:  # noqa: ARG002
            return int(input_ids[0][-1]) in tokenizer.stop_ids

    theirs = AutoTokenizer.from_pretrained(exported)
    model = AutoModelForCausalLM.from_pretrained(exported).float()
    prompt = f"<|SYSTEM|>{CARD_SYSTEM_PROMPT[:60]}<|USER|>What's your mood today?<|ASSISTANT|>"
    inputs = theirs(prompt, return_tensors="pt")
    torch.manual_seed(0)
    tokens = model.generate(
        **inputs,
        max_new_tokens=64,
        temperature=0.7,
        do_sample=True,
        stopping_criteria=StoppingCriteriaList([StopOnTokens()]),
    )
    answer = tokens[0, inputs["input_ids"].shape[1] :].tolist()
    assert 1 <= len(answer) <= 64
    assert not set(answer[:-1]) & set(tokenizer.stop_ids)
    assert "What's your mood today?" in theirs.decode(tokens[0], skip_special_tokens=True)


def test_transformers_and_we_give_the_same_greedy_answer(exported: Path, tokenizer: ChatTokenizer) -> None:
    prompt = encode_prompt([Message("user", "how do you do?")], "x", tokenizer)
    model = AutoModelForCausalLM.from_pretrained(exported)
    theirs = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=30)[0, len(prompt) :].tolist()
    ours = load(exported, torch.device("cpu")).model
    config = OurGeneration(max_new_tokens=30)
    answer = list(generate(ours, prompt, tokenizer.stop_ids, config, ours.config.vocab_size))
    assert answer == [token_id for token_id in theirs if token_id not in tokenizer.stop_ids]


def test_the_usage_in_the_readme_runs(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    code = code.replace("How do tides work?", "hi")
    monkeypatch.chdir(exported)
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["answer"].shape[1] > scope["prompt"]["input_ids"].shape[1]
    assert capsys.readouterr().out


# ------------------------------------------------------------------------------------ refusals


def test_an_existing_folder_is_never_touched(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        export(checkpoint, tmp_path / "out", ExportConfig())
    assert left_behind(tmp_path / "out") == [tmp_path / "out"]
    assert not list((tmp_path / "out").iterdir())


def test_a_damaged_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(StorageError, match=r"model\.safetensors"):
        export(copy, tmp_path / "out", ExportConfig())
    assert not (tmp_path / "out").exists()


def test_a_folder_without_manifest_can_be_exported(exported: Path, tmp_path: Path) -> None:
    export(exported, tmp_path / "again", ExportConfig(dtype="bf16"))
    assert "does not say" in (tmp_path / "again" / "README.md").read_text(encoding="utf-8")


def spoil_template(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ChatFormat.chat_template
    monkeypatch.setattr(
        ChatFormat, "chat_template", lambda own, system: original(own, system).replace("<|USER|>'", "<|USER|> '")
    )


def spoil_default_system(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ChatFormat.chat_template
    monkeypatch.setattr(ChatFormat, "chat_template", lambda own, system: original(own, system.rstrip()))


def spoil_rotary_share(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_config(monkeypatch, "rope_parameters", {"rope_theta": 10000.0, "partial_rotary_factor": 0.5})


def spoil_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_config(monkeypatch, "hidden_act", "relu")


def spoil_layer_count(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_config(monkeypatch, "num_hidden_layers", 3)


def spoil_config(monkeypatch: pytest.MonkeyPatch, key: str, value: Any) -> None:
    original = module._write_token_ids

    def write(folder: Path, *rest: Any) -> None:
        original(folder, *rest)
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))

    monkeypatch.setattr(module, "_write_token_ids", write)


@pytest.mark.parametrize(
    "spoil", [spoil_template, spoil_default_system, spoil_rotary_share, spoil_activation, spoil_layer_count]
)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_nothing_is_published_if_transformers_would_read_something_else(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[pytest.MonkeyPatch], None],
    dtype: Any,
) -> None:
    spoil(monkeypatch)
    with pytest.raises(DataError):
        export(checkpoint, tmp_path / "out", ExportConfig(dtype=dtype))
    assert left_behind(tmp_path / "out") == []


def test_large_models_are_checked_by_their_tensors_names(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PARAMETERS_RUN", 0)
    export(checkpoint, tmp_path / "good", ExportConfig())
    spoil_layer_count(monkeypatch)
    with pytest.raises(DataError, match="other tensors"):
        export(checkpoint, tmp_path / "out", ExportConfig())
