"""`sft export`: a checkpoint → a Hugging Face folder, published only after transformers has read it back correctly."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast
from transformers.utils import logging

from sft.chat.tokenizer import ChatTokenizer
from sft.config.inference import ExportConfig
from sft.config.model import ModelConfig
from sft.errors import ConfigError, DataError
from sft.export.chat_template import verify_template
from sft.export.model_card import CardFacts, model_card
from sft.inference.load import FORMAT_KEY, TOKENIZER_CONFIG, load_tokenizer
from sft.model.attention import Documents
from sft.model.hf_folder import read_config, read_weights, write_folder
from sft.model.lora import PLAIN
from sft.model.registry import build, family_of, meta_model, parameter_shapes
from sft.storage.atomic import staged
from sft.storage.json_file import read_json
from sft.storage.manifest import MANIFEST
from sft.train.checkpoint.state import State
from sft.train.checkpoint.store import require_whole

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Largest difference of logits, as a share of the largest logit, that rounding the weights may cause.
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 8e-2}
# Models up to this size are run before they are published; larger ones are checked by tensor names and shapes.
MAX_PARAMETERS_RUN = 1_000_000_000


def export(checkpoint: Path, out: Path, config: ExportConfig) -> None:
    """Write a folder that transformers, vLLM and lm-eval read, and check it by loading it with transformers.

    Raises: ConfigError if `out` exists; StorageError if the checkpoint is damaged; DataError if what transformers
    reads back is not the model that was trained. Nothing is published then.
    """
    if out.exists():
        raise ConfigError("exists already and is never overwritten", on=out, hint="name another folder")
    state = require_whole(checkpoint) if (checkpoint / MANIFEST).is_file() else None
    shape, tokenizer = read_config(checkpoint), load_tokenizer(checkpoint, state)
    system = tokenizer.format.default_system if config.system is None else config.system
    lora = state.lora if state else PLAIN
    weights = read_weights(checkpoint, shape, lora)
    with staged(out) as folder:
        write_folder(weights, shape, folder, DTYPES[config.dtype], config.max_shard_bytes)
        _write_tokenizer(folder, tokenizer, shape, system)
        _write_token_ids(folder, tokenizer, shape)
        card = model_card(_card_facts(out.name, shape, config.dtype, system, tokenizer, state))
        (folder / "README.md").write_text(card, encoding="utf-8")
        with _no_progress_bars():
            _verify_tokenizer(folder, tokenizer, system)
            _verify_model(folder, weights, shape, config.dtype)


def _write_tokenizer(folder: Path, tokenizer: ChatTokenizer, shape: ModelConfig, system: str) -> None:
    path, end = folder / "tokenizer.json", tokenizer.format.end_token
    path.write_text(tokenizer.json, encoding="utf-8")
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(path),
        bos_token=end,
        eos_token=end,
        unk_token=end,
        pad_token=tokenizer.format.pad_token,
        model_max_length=shape.max_positions,
        padding_side="left",  # so that the answers of a batch start at the same position
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    theirs.chat_template = tokenizer.format.chat_template(system)
    theirs.save_pretrained(folder, save_jinja_files=False)
    # transformers 4 and programs built on it do not know the newer names of the class and the list of tokens.
    settings = read_json(folder / TOKENIZER_CONFIG)
    for newer in ("backend", "extra_special_tokens"):
        settings.pop(newer, None)
    settings |= {"additional_special_tokens": list(tokenizer.format.tags), "tokenizer_class": "PreTrainedTokenizerFast"}
    settings |= {FORMAT_KEY: tokenizer.format.name}
    _write_json(folder / TOKENIZER_CONFIG, settings)
    path.write_text(tokenizer.json, encoding="utf-8")  # transformers may have added a post-processor


def _write_token_ids(folder: Path, tokenizer: ChatTokenizer, shape: ModelConfig) -> None:
    """Write the stop ids, in the order of the StableLM-Tuned-Alpha card, and the card's sampling settings."""
    ids = {"bos_token_id": tokenizer.end_id, "pad_token_id": tokenizer.pad_id}
    path = folder / "config.json"
    _write_json(path, read_json(path) | ids | {"eos_token_id": tokenizer.end_id})
    GenerationConfig(
        **ids,
        eos_token_id=list(tokenizer.stop_ids),
        stop_strings=list(tokenizer.format.stop_strings) or None,
        max_new_tokens=min(512, shape.max_positions // 2),
        do_sample=True,
        temperature=0.7,
    ).save_pretrained(folder)


def _card_facts(
    name: str, shape: ModelConfig, dtype: str, system: str, tokenizer: ChatTokenizer, state: State | None
) -> CardFacts:
    training = dataclasses.asdict(state) if state else None
    return CardFacts(name, shape, meta_model(shape).num_parameters, dtype, system, tokenizer, training)


def _verify_tokenizer(folder: Path, tokenizer: ChatTokenizer, system: str) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)

    def render(messages: Any, add_generation_prompt: bool) -> list[int]:
        ids = theirs.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, return_dict=False)
        return list(ids)

    verify_template(render, system, tokenizer)
    found = tuple(theirs.convert_tokens_to_ids(list(tokenizer.format.control_tokens)))
    if found != tokenizer.control_ids:
        raise DataError(f"control ids {found} in the exported tokenizer, expected {tokenizer.control_ids}", on=folder)


@torch.inference_mode()
def _verify_model(folder: Path, weights: Mapping[str, Tensor], shape: ModelConfig, dtype: str) -> None:
    """Compare the model that transformers loads from the folder with ours and with the checkpoint's weights."""
    if meta_model(shape).num_parameters > MAX_PARAMETERS_RUN:
        _verify_names(folder, shape)
        return
    theirs, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if any(report.values()):
        raise DataError(f"transformers does not find the tensors it expects: {report}", on=folder)
    ours = build(shape, "cpu")
    ours.load_state_dict(weights)
    num_tokens = min(64, shape.max_positions)
    input_ids_T = torch.arange(num_tokens) * 7919 % shape.vocab_size  # spread over the vocabulary
    expected_TV = ours.logits(ours(input_ids_T, Documents.of([num_tokens])))
    found_TV = theirs.eval()(input_ids_T[None], use_cache=False).logits[0]
    difference = float((found_TV - expected_TV).abs().max() / expected_TV.abs().max())
    if not difference <= TOLERANCES[dtype]:
        raise DataError(
            f"logits in transformers differ by {difference:.1e} of the largest, expected {TOLERANCES[dtype]} or less",
            on=folder,
            hint="nothing was published; if dtype is fp16 or bf16, try fp32",
        )


def _verify_names(folder: Path, shape: ModelConfig) -> None:
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    our_name = family_of(shape).our_name
    expected = {our_name(name): value.shape for name, value in theirs.named_parameters()}
    if expected != parameter_shapes(shape):
        raise DataError("transformers expects other tensors than the folder holds", on=folder)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
