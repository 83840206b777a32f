"""`sft demo`: run every stage on the bundled sample rows, with a model small enough to train in a minute on a CPU."""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sft.cli.arguments import Commands, config_file
from sft.cli.build import resolve
from sft.errors import ConfigError

if TYPE_CHECKING:  # otherwise imported where they are needed: `sft --help` reads this file too
    from rich.console import Console

    from sft.chat.conversation import Conversation
    from sft.config.data import BuildConfig
    from sft.config.train import TrainConfig
    from sft.data.shards import Shards

MIXTURE = Path("data_recipes/mixtures/sample.yaml")
TRAINING = Path("configs/tiny_cpu.yaml")
NUM_IDS = 1024
"""Vocabulary of the demo's tokenizer; the tiny preset has as many embedding rows."""
NUM_PROMPTS = 3


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    text = "run the whole pipeline on bundled sample rows, with a tiny model"
    parser = commands.add("demo", run, text)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="new folder for everything that the demo makes"
    )


def run(options: argparse.Namespace) -> None:
    """Build, train, evaluate and export the bundled sample."""
    demo(options.out)


def demo(out: Path) -> None:
    """Build, train, evaluate and export in `out`, then show one exchange.

    Raises: ConfigError if `out` holds something else.
    """
    import torch
    from rich.console import Console

    from sft.chat.formats.registry import format_named
    from sft.chat.tokenizer import train_tokenizer
    from sft.config.inference import EvalConfig, ExportConfig, GenerationConfig
    from sft.data.build.build import build
    from sft.data.inspect.show import overview
    from sft.evals.evaluate import evaluate
    from sft.export.hf_export import export
    from sft.inference.load import find
    from sft.storage.atomic import write_text
    from sft.train.loop import train

    torch.set_num_threads(1)  # with matrices this small, several threads only wait for each other
    console = Console(highlight=False)
    config, recipes, training = _configs(out)
    _title(console, 1, f"Raw rows to packed shards: sft build {MIXTURE}")
    if not Path(config.tokenizer).exists():
        tokenizer = train_tokenizer(_texts(config, recipes), NUM_IDS, format_named(config.format))
        write_text(Path(config.tokenizer), tokenizer.json)
    shards = build(config, recipes)
    overview(shards.folder, console)

    _title(console, 2, f"Shards to a model: sft train {TRAINING}")
    train(training)

    _title(console, 3, f"Held-out loss and answers to training prompts: sft eval {training.out}")
    prompts = tuple(prompt for prompt, _ in _exchanges(config, recipes, shards))
    generation = GenerationConfig(max_new_tokens=96)
    result = evaluate([Path(training.out)], EvalConfig(prompts=prompts, generation=generation), console)

    console.print("(a million parameters learn these rows by heart, not how to answer others: held-out loss is high)")

    _title(console, 4, f"A Hugging Face folder: sft export {training.out} {out / 'model'}")
    if not (out / "model").exists():
        export(find(Path(training.out)), out / "model", ExportConfig(dtype="fp32"))
    _summary(console, out, result, _exchanges(config, recipes, shards))


def _configs(out: Path) -> "tuple[BuildConfig, Path, TrainConfig]":
    from sft.config.loading import load, read_arguments
    from sft.config.train import TrainConfig
    from sft.config.yaml_text import read_yaml
    from sft.data.shards import TOKENIZER

    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / TOKENIZER).is_file()):
        raise ConfigError("the folder holds something else", on=out, hint="name a new folder: --out")
    places = [f"out={out / 'shards'}", f"tokenizer={out / TOKENIZER}"]
    loaded, recipes = resolve(MIXTURE, places)
    typed = read_arguments([f"shards={out / 'shards'}", f"out={out / 'run'}"])
    return loaded.config, recipes, load(TrainConfig, [read_yaml(config_file(TRAINING)), typed]).config


def _conversations(config: "BuildConfig", recipes: Path) -> "Iterator[tuple[str, Conversation]]":
    """Source name and conversation of every sample row that its recipe keeps."""
    from sft.chat.conversation import Conversation
    from sft.data.build.build import identify_sources
    from sft.data.sources.files import read_rows
    from sft.data.sources.recipe import load_converter
    from sft.data.sources.rows import parse

    for name, files in identify_sources(config).items():
        convert = load_converter(recipes / name)
        for _, raw in itertools.chain.from_iterable(read_rows(file.path) for file in files):
            row = parse(raw)
            kept = convert(row) if isinstance(row, dict) else row
            if isinstance(kept, Conversation):
                yield name, kept


def _texts(config: "BuildConfig", recipes: Path) -> Iterator[str]:
    from sft.data.build.worker import system_text

    for name, conversation in _conversations(config, recipes):
        yield system_text(config, config.sources[name], conversation)
        yield from (message.text for message in conversation.messages)


def _exchanges(config: "BuildConfig", recipes: Path, shards: "Shards") -> list[tuple[str, str]]:
    """A few single exchanges of the training split, from different sources."""
    from sft.data.digests import digest

    table = shards.documents
    trained = {int(value) for value in table.digest[~table.held_out]}
    seen: dict[str, tuple[str, str]] = {}
    for name, conversation in _conversations(config, recipes):
        if len(conversation.messages) == 2 and digest(conversation) in trained:
            seen.setdefault(name, conversation.exchanges[0])
    return list(seen.values())[:NUM_PROMPTS]


def _title(console: "Console", number: int, text: str) -> None:
    from rich.text import Text

    console.print()
    console.rule(Text(f"{number}. {text}", "bold"), align="left")


def _summary(console: "Console", out: Path, result: Path, exchanges: list[tuple[str, str]]) -> None:
    from sft.storage.json_file import read_json

    samples = read_json(result)[0]["samples"]
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
