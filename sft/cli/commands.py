"""What each command of `sft` does with its options. Nothing heavy is imported before it is needed."""

import argparse
from typing import Any

from sft.errors import ConfigError


def run_demo(options: argparse.Namespace) -> None:
    """Build, train, evaluate and export the bundled sample."""
    from sft.cli.demo import demo

    demo(options.out)


def run_fetch(options: argparse.Namespace) -> None:
    """Download raw files and pin them."""
    from sft.data.sources.recipe import load_mixture

    # Fetching needs neither a tokenizer nor a place for shards, which the settings of a build must name.
    loaded = load_mixture(options.mixture, ["tokenizer=unused", "out=unused", *options.settings])
    if _printed(options, loaded):
        return
    from sft.data.sources.fetch import fetch

    fetch(loaded.config, update=options.update)


def run_build(options: argparse.Namespace) -> None:
    """Build the shards, or one part's share of the work."""
    from sft.data.sources.recipe import load_mixture, recipes_dir

    loaded = load_mixture(options.mixture, options.settings)
    if _printed(options, loaded):
        return
    from rich.console import Console

    from sft.data.build.build import Part, build, build_part
    from sft.data.inspect.show import overview

    if options.part is not None:
        count = build_part(loaded.config, recipes_dir(options.mixture), Part.parse(options.part))
        done = "built already" if count is None else f"chunks done: {count}; sft build without --part merges all"
        print(f"part {options.part}: {done}")
        return
    shards = build(loaded.config, recipes_dir(options.mixture))
    overview(shards.folder, Console())


def run_inspect(options: argparse.Namespace) -> None:
    """Show what the options ask for: packs, a row, a step, or a report."""
    from rich.console import Console

    from sft.data.inspect import show

    console = Console()
    if options.html is not None:
        from sft.data.report.html import write_report

        packs = [] if options.pack is None else [(options.split, options.pack)]
        write_report(options.shards, options.html, packs=packs)
        print(f"written to {options.html}: open it in a browser")
    elif options.step is not None:
        from sft.train.inspect_step import show_step

        show_step(options.shards, options.step, console, full=options.full)
    elif options.row is not None:
        show.trace_row(options.shards, options.row, console, options.sources)
    elif options.trace is not None:
        show.trace(options.shards, options.split, options.pack or 0, options.trace, console, options.sources)
    elif options.pack is not None:
        show.show_pack(options.shards, options.split, options.pack, console)
    else:
        show.overview(options.shards, console)


def run_diff(options: argparse.Namespace) -> None:
    """Compare two builds."""
    from rich.console import Console

    from sft.data.inspect.show_diff import show_diff

    show_diff(options.a, options.b, Console(), num_examples=options.examples, json_file=options.json)


def run_verify(options: argparse.Namespace) -> None:
    """Check shards, a checkpoint, or all checkpoints of a run."""
    folder = options.folder
    if (folder / "checkpoints").is_dir() or (folder / "state.json").is_file():
        from sft.train.verify_run import verify_checkpoint, verify_run

        is_run = (folder / "checkpoints").is_dir()
        for sentence in verify_run(folder) if is_run else [verify_checkpoint(folder)]:
            print(sentence)
        return
    from sft.data.inspect.verify import verify

    print(f"{folder}: {verify(folder)}")


def run_train(options: argparse.Namespace) -> None:
    """Train, or go on."""
    from sft.config.loading import load, read_arguments
    from sft.config.train import TrainConfig
    from sft.config.yaml_text import read_yaml

    loaded = load(TrainConfig, [read_yaml(options.config), read_arguments(options.settings)])
    if _printed(options, loaded):
        return
    if options.dry_run:
        from sft.train.dry_run import dry_run

        dry_run(loaded.config)
        return
    from sft.train.loop import train

    train(loaded.config)


def run_doctor(options: argparse.Namespace) -> None:
    """Show what is here and, with a model, whether it computes right."""
    from rich.console import Console

    console = Console(highlight=False)
    if options.model is None:
        if options.settings or options.shards:
            raise ConfigError("--shards and settings belong to a model", hint="sft doctor --model FOLDER|CONFIG.yaml")
        from sft.cli.doctor import doctor

        doctor(console)
        return
    from sft.cli.doctor_model import check_model

    check_model(options.model, options.shards, options.settings, console)


def run_eval(options: argparse.Namespace) -> None:
    """Measure checkpoints."""
    from sft.config.inference import EvalConfig

    loaded = _from_arguments(EvalConfig, options)
    if _printed(options, loaded):
        return
    from rich.console import Console

    from sft.evals.evaluate import evaluate

    evaluate(options.checkpoints, loaded.config, Console())


def run_chat(options: argparse.Namespace) -> None:
    """Talk to a checkpoint."""
    from sft.config.inference import ChatConfig

    loaded = _from_arguments(ChatConfig, options)
    if _printed(options, loaded):
        return
    from rich.console import Console

    from sft.inference.chat import talk

    talk(options.checkpoint, loaded.config, Console())


def run_export(options: argparse.Namespace) -> None:
    """Write a Hugging Face folder."""
    from sft.config.inference import ExportConfig

    loaded = _from_arguments(ExportConfig, options)
    if _printed(options, loaded):
        return
    from sft.export.hf_export import export
    from sft.inference.load import find

    export(find(options.checkpoint), options.out, loaded.config)
    print(f"written to {options.out} in {loaded.config.dtype}, and read back by transformers")


def _from_arguments(schema: type[Any], options: argparse.Namespace) -> Any:
    from sft.config.loading import load, read_arguments

    return load(schema, [read_arguments(options.settings)])


def _printed(options: argparse.Namespace, loaded: Any) -> bool:
    """Print the resolved settings if that is all that was asked for."""
    if options.print_config:
        from sft.config.yaml_text import describe

        print(describe(loaded))
    return bool(options.print_config)
