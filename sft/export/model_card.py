"""The model card (README.md) of an exported folder."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from sft.chat.tokenizer import ChatTokenizer
from sft.config.model import ModelConfig
from sft.data.manifest import renamed
from sft.model.registry import family_of
from sft.version import VERSION

Source = Mapping[str, Any]
"""The entry of one source in the shards' manifest."""


@dataclass(frozen=True)
class CardFacts:
    """The content of the card; training facts are absent if another program made the folder."""

    name: str
    shape: ModelConfig
    num_parameters: int
    dtype: str
    system: str
    tokenizer: ChatTokenizer
    training: Mapping[str, Any] | None
    """The checkpoint's step, counts, config and shards."""


def model_card(facts: CardFacts) -> str:
    """The card as Markdown with the metadata block that the hub reads."""
    return "\n".join(_lines(facts)) + "\n"


def _lines(facts: CardFacts) -> Iterator[str]:
    shape, family = facts.shape, family_of(facts.shape)
    yield from ("---", "library_name: transformers", "pipeline_tag: text-generation")
    yield from ("tags:", f"- {family.model_type}", "- sft")
    yield from ("license: other", "---", "", f"# {facts.name}", "")
    yield (
        f"A {family.title} chat model with {facts.num_parameters:,} parameters ({shape.num_layers} layers, width "
        f"{shape.hidden_size}, {shape.num_heads} heads, {shape.max_positions} positions), weights in {facts.dtype}. "
        f"Exported by sft {VERSION}."
    )
    yield from ("", "## Use", "", *_usage(facts))
    yield from ("", "## Text format", "", *_format(facts))
    if facts.training:
        yield from ("", "## Training", "", *_training(facts.training))
        yield from ("", "## Data", "", *_data(facts.training["shards"]))
    yield from ("", "## License", "", *_license(facts.training))
    yield from ("", "## Limits", "")
    yield "It may state falsehoods with confidence, and repeats the biases of its data. Check what it says."


def _usage(facts: CardFacts) -> Iterator[str]:
    yield from (
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'folder = "."  # this folder',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        'model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")',
        "",
        'chat = [{"role": "user", "content": "How do tides work?"}]',
        "prompt = tokenizer.apply_chat_template(",
        '    chat, add_generation_prompt=True, return_tensors="pt", return_dict=True',
        ")",
        f"answer = model.generate(**prompt, max_new_tokens=64, eos_token_id={list(facts.tokenizer.stop_ids)})",
        'print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))',
        "```",
    )


def _format(facts: CardFacts) -> Iterator[str]:
    tokenizer = facts.tokenizer
    stops = ", ".join(f"{token_id} `{tokenizer.name(token_id)}`" for token_id in tokenizer.stop_ids)
    yield f"`{tokenizer.format.sketch}`, with nothing between tags and text. An answer ends at the first of"
    texts = "".join(f", or of the text {text!r}" for text in tokenizer.format.stop_strings)
    yield f"these ids: {stops}{texts}."
    yield "A tag that is spelt out inside a message counts as a tag: take such text out of what users send."
    yield from ("", "A chat without a system message gets this one:", "", *_quoted(facts.system))


def _quoted(text: str) -> Iterator[str]:
    fence = "```"
    while fence in text:
        fence += "`"
    yield from (fence, text.removesuffix("\n"), fence)


def _training(training: Mapping[str, Any]) -> Iterator[str]:
    config, counts = training["config"], training["counts"]
    optimizer = config["optimizer"]
    rows = {
        # The folder's name identifies the weights; its path on the machine is private.
        "starting weights": PurePath(config["model"]["weights"]).name,
        "optimizer steps": f"{training['step']:,}",
        "tokens": f"{counts['num_tokens']:,}, of them {counts['num_supervised_tokens']:,} with loss",
        "batch": f"{config['batch_packs']} packed sequences",
        "learning rate": f"{optimizer['lr']}, {optimizer['schedule']} after {optimizer['warmup_steps']} warm-up steps",
        "AdamW": f"betas {tuple(optimizer['betas'])}, weight decay {optimizer['weight_decay']}",
        "precision": f"{config['precision']} arithmetic, fp32 weights",
        "seed": str(config["seed"]),
        **_adapters(config.get("lora", {})),
    }
    yield from ("| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items()))


def _adapters(lora: Mapping[str, Any]) -> dict[str, str]:
    if not lora.get("rank"):
        return {}
    where = f"rank {lora['rank']} and alpha {lora['alpha']} on {', '.join(lora['targets'])}"
    return {"adapters": f"LoRA of {where}, merged into the weights"}


def _data(shards: Mapping[str, Any]) -> Iterator[str]:
    sources = _sources(shards)
    yield f"Build `{shards['name']}`, content digest `{shards['content_digest']}`."
    yield from ("", "| source | published at | license | commercial use |", "| --- | --- | --- | --- |")
    for source in sources:
        commercial = "yes" if source["commercial"] else "no"
        yield f"| {source['title']} | {source['hub_id']} | {source['license']} | {commercial} |"
    yield from ("", *dict.fromkeys(f"- {source['title']}: {source['citation']}" for source in sources))


def _sources(shards: Mapping[str, Any]) -> list[Source]:
    return [renamed(source) for source in shards["sources"].values()]


def _license(training: Mapping[str, Any] | None) -> Iterator[str]:
    yield "The license of the starting weights and those of the training data apply together."
    if training is None:
        yield "This folder does not say what they are."
        return
    barred = [source["title"] for source in _sources(training["shards"]) if not source["commercial"]]
    if barred:
        yield f"**Not for commercial use**, because of {', '.join(barred)}."
