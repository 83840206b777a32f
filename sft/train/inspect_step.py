"""From an optimizer step of a run to the raw rows that it trained on."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from sft.config.loading import load, with_todays_names
from sft.config.train import TrainConfig
from sft.config.yaml_text import read_yaml
from sft.data.batches.sampler import Order
from sft.data.inspect.show import print_packs
from sft.data.report.pack_browser import visible
from sft.data.shards import Shards
from sft.errors import ConfigError, DataError, listed
from sft.train.fingerprint import differences, identity
from sft.train.monitor.bad_steps import read_bad_step
from sft.train.monitor.records import SCALE, SPIKE, STEP, Record, read_records
from sft.train.run_folder import RunFolder


def show_step(path: Path, step: int, console: Console, *, full: bool = False) -> None:
    """Print which packs step `step`, counted from 1 as in metrics.jsonl, trains on, and how many rows per source.

    Raises: ConfigError if this is not a run or has no such step, DataError if its shards or settings have changed.
    """
    folder = RunFolder(path)
    config, shards = run_inputs(folder)
    order = Order.of(config, shards.split("train"))
    if not 1 <= step <= order.num_steps:
        raise ConfigError(f"no step {step}: the run has {order.num_steps}, counted from 1", on=path)
    packs = order.batch(step - 1)
    first = (step - 1) * config.batch_packs / order.num_packs
    lines = [
        f"step {step} of {order.num_steps}, epoch {first:.3f}: {len(packs)} packs of {shards.folder}, split train",
        f"packs {', '.join(map(str, packs))}",
        _logged(folder, step),
    ]
    console.print(Text(visible("\n".join(lines))), soft_wrap=not console.is_terminal)
    print_packs(shards, "train", packs, console, full=full)


def run_inputs(folder: RunFolder) -> tuple[TrainConfig, Shards]:
    """The settings and shards of the run, checked to be those that it trained with."""
    if not folder.record.is_file():
        raise ConfigError(
            f"not a run folder: it has no {folder.record.name}",
            on=folder.path,
            hint="name the folder that sft train wrote",
        )
    config = load(TrainConfig, [with_todays_names(TrainConfig, read_yaml(folder.config))]).config
    shards = Shards.open(Path(config.shards), check_hashes=False)
    _, before = folder.read()
    changed = differences(before, identity(config, shards))
    if changed:
        raise DataError(
            f"settings or shards differ from those that the run trained with:{listed(changed)}",
            on=folder.path,
            hint=f"restore {folder.config.name} and {config.shards}",
        )
    return config, shards


def _logged(folder: RunFolder, step: int) -> str:
    """The entry for the step in metrics.jsonl."""
    valid = [record for record in read_records(folder.metrics) if not record.get("superseded")]
    records = {record["kind"]: record for record in valid if record["step"] == step}
    if STEP not in records:
        return "not in metrics.jsonl: the step is still to come"
    events = [_EVENTS[kind].format(**record) for kind, record in records.items() if kind in _EVENTS]
    return "\n".join([_sentence(records[STEP]), *events, *_bad(folder, records[STEP])])


_EVENTS = {
    SCALE: "loss scale {new:.0f}, was {old:.0f} at the step before: {reason}",
    SPIKE: "a loss spike starts here: recent mean {mean:.4g}, limit {limit:.4g}",
}


def _bad(folder: RunFolder, record: Record) -> Iterator[str]:
    """The reason in the file about a bad step, unless a later attempt repeated the step."""
    told = read_bad_step(folder.bad_step(record["step"]))
    if told and told.get("attempt") == record.get("attempt"):
        ended = ", and the run ended here" if told.get("ended_the_run") else ""
        yield f"bad step: {told.get('reason')}{ended}; every row is in {folder.bad_step(record['step'])}"


def _sentence(record: Record) -> str:
    reason = f" ({record['reason']})" if "reason" in record else ""
    skipped = f", skipped{reason}: the weights stayed as they were" if record["skipped"] else ""
    counts = f"{record['tokens']:,} tokens, {record['supervised_tokens']:,} with loss"
    loss = record["loss"]  # text if it is not finite
    return f"logged: loss {loss if isinstance(loss, str) else round(loss, 4)}, {counts}{skipped}"
