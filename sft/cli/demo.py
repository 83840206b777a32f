"""`sft demo`: every stage on the bundled sample rows, with a model small enough to train in a minute on a CPU."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from sft.chat.conversation import Conversation
from sft.chat.formats.registry import format_named
from sft.chat.tokenizer import train_tokenizer
from sft.config.data import BuildConfig
from sft.config.inference import EvalConfig, ExportConfig, GenerationConfig
from sft.config.loading import load, read_arguments
from sft.config.train import TrainConfig
from sft.config.yaml_text import read_yaml
from sft.data.build.build import build, identify_sources
from sft.data.build.worker import system_text
from sft.data.digests import digest
from sft.data.inspect.show import overview
from sft.data.shards import TOKENIZER, Shards
from sft.data.sources.files import read_rows
from sft.data.sources.recipe import load_converter, load_mixture, recipes_dir
from sft.data.sources.rows import parse
from sft.errors import ConfigError
from sft.storage.atomic import write_text

MIXTURE = Path("data_recipes/mixtures/sample.yaml")
TRAINING = Path("configs/tiny_cpu.yaml")
NUM_IDS = 1024
"""Vocabulary of the demo's tokenizer; the tiny preset has as many embedding rows."""
NUM_PROMPTS = 3


def demo(out: Path) -> None:
    """Build, train, evaluate and export in `out`, then show one exchange.

    Raises: ConfigError if it is not run from the project's folder, or `out` holds something else.
    """
    import torch

    from sft.evals.evaluate import evaluate
    from sft.export.hf_export import export
    from sft.train.loop import train

    torch.set_num_threads(1)  # matrices this small only make several threads wait for each other
    console = Console(highlight=False)
    config, training = _configs(out)
    _title(console, 1, f"Raw rows to packed shards: sft build {MIXTURE}")
    if not Path(config.tokenizer).exists():
        write_text(Path(config.tokenizer), train_tokenizer(_texts(config), NUM_IDS, format_named(config.format)).json)
    shards = build(config, recipes_dir(MIXTURE))
    overview(shards.folder, console)

    _title(console, 2, f"Shards to a model: sft train {TRAINING}")
    train(training)

    _title(console, 3, f"Held-out loss and answers to training prompts: sft eval {training.out}")
    prompts = tuple(prompt for prompt, _ in _exchanges(config, shards))
    generation = GenerationConfig(max_new_tokens=96)
    result = evaluate([Path(training.out)], EvalConfig(prompts=prompts, generation=generation), console)

    console.print("(a million parameters learn these rows by heart, not how to answer others: held-out loss is high)")

    _title(console, 4, f"A Hugging Face folder: sft export {training.out} {out / 'model'}")
    if not (out / "model").exists():
        from sft.inference.load import find

        export(find(Path(training.out)), out / "model", ExportConfig(dtype="fp32"))
    _summary(console, out, result, _exchanges(config, shards))


def _configs(out: Path) -> tuple[BuildConfig, TrainConfig]:
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / TOKENIZER).is_file()):
        raise ConfigError("holds something else", on=out, hint="name a new folder: --out")
    for path in (MIXTURE, TRAINING):
        if not path.is_file():
            raise ConfigError("not found: the demo runs in the folder of the project", on=path, hint="cd there first")
    places = [f"out={out / 'shards'}", f"tokenizer={out / TOKENIZER}"]
    config = load_mixture(MIXTURE, places).config
    typed = read_arguments([f"shards={out / 'shards'}", f"out={out / 'run'}"])
    return config, load(TrainConfig, [read_yaml(TRAINING), typed]).config


def _conversations(config: BuildConfig) -> Iterator[tuple[str, Conversation]]:
    """Source name and conversation of every sample row that its recipe keeps."""
    recipes = recipes_dir(MIXTURE)
    for name, files in identify_sources(config).items():
        convert = load_converter(recipes / name)
        for _, raw in itertools.chain.from_iterable(read_rows(file.path) for file in files):
            row = parse(raw)
            kept = convert(row) if isinstance(row, dict) else row
            if isinstance(kept, Conversation):
                yield name, kept


def _texts(config: BuildConfig) -> Iterator[str]:
    for name, conversation in _conversations(config):
        yield system_text(config, config.sources[name], conversation)
        yield from (message.text for message in conversation.messages)


def _exchanges(config: BuildConfig, shards: Shards) -> list[tuple[str, str]]:
    """A few single exchanges of the training split, from different sources."""
    table = shards.documents
    trained = {int(value) for value in table.digest[~table.held_out]}
    seen: dict[str, tuple[str, str]] = {}
    for name, conversation in _conversations(config):
        if len(conversation.messages) == 2 and digest(conversation) in trained:
            seen.setdefault(name, conversation.exchanges[0])
    return list(seen.values())[:NUM_PROMPTS]


def _title(console: Console, number: int, text: str) -> None:
    console.print()
    console.rule(Text(f"{number}. {text}", "bold"), align="left")


def _summary(console: Console, out: Path, result: Path, exchanges: list[tuple[str, str]]) -> None:
    samples = json.loads(result.read_text(encoding="utf-8"))[0]["samples"]
    answers = {sample["prompt"]: sample["answer"] for sample in samples}
    exact = sum(answers[prompt] == answer for prompt, answer in exchanges)
    prompt, _ = exchanges[0]
    _title(console, 5, f"Done: {exact} of {len(exchanges)} training prompts answered word for word")
    lines = [
        f"you> {prompt}",
        f"model> {answers[prompt]}",
        "",
        f"shards      {out / 'shards'}     look: sft inspect {out / 'shards'} --pack 0",
        f"            {out / 'shards' / 'report.html'}, to be opened in a browser",
        f"run         {out / 'run'}        metrics.jsonl, checkpoints/, eval.json",
        f"model       {out / 'model'}      talk: sft chat {out / 'model'}",
    ]
    console.print("\n".join(lines), markup=False, soft_wrap=True)
