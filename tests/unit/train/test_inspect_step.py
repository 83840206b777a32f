"""A training step leads to its packs and rows."""

import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from sft.config.train import TrainConfig
from sft.data.batches.sampler import Order
from sft.data.shards import Shards
from sft.errors import ConfigError, DataError
from sft.train.distributed.ranks import SINGLE
from sft.train.inputs import read_inputs
from sft.train.inspect_step import show_step
from sft.train.loop import train
from sft.train.run_folder import RunFolder


@pytest.fixture(scope="module")
def run(shared_tiny_config: Callable[..., TrainConfig]) -> Path:
    config = shared_tiny_config()
    train(config)
    return Path(config.out)


def shown(run: Path, step: int, *, full: bool = False) -> str:
    stream = io.StringIO()
    show_step(run, step, Console(file=stream, width=200), full=full)
    return stream.getvalue()


@pytest.mark.parametrize("step", [1, 7, 12])
def test_a_step_names_the_packs_it_trained_on(step: int, run: Path, tiny_shards: Path) -> None:
    packs = Order(24, 4, 2.0, 0).batch(step - 1)
    text = shown(run, step)
    assert f"step {step} of 12" in text
    assert f"packs {', '.join(map(str, packs))}\n" in text
    split = Shards.open(tiny_shards).split("train")
    tokens = sum(split[pack].num_tokens for pack in packs)
    assert f", {tokens:,} tokens, {sum(split[pack].num_supervised for pack in packs):,} with loss\n" in text


def test_every_row_of_a_step_is_listed_if_asked_for(run: Path, tiny_shards: Path) -> None:
    split, packs = Shards.open(tiny_shards).split("train"), Order(24, 4, 2.0, 0).batch(2)
    rows = [line for line in shown(run, 3, full=True).splitlines() if line.startswith("pack ")]
    expected = [(pack, doc_id) for pack in packs for doc_id, _ in split[pack].documents()]
    assert len(rows) == len(expected)
    for row, (pack, doc_id) in zip(rows, expected, strict=True):
        assert row.startswith(f"pack {pack}, tokens ")
        assert f": document {doc_id}, " in row
        assert row.endswith(f": rows.jsonl, row {doc_id}")
    assert len(shown(run, 3).splitlines()) < len(shown(run, 3, full=True).splitlines())


@pytest.mark.parametrize("step", [-1, 0, 13])
def test_a_step_that_the_run_does_not_have_is_refused(step: int, run: Path) -> None:
    with pytest.raises(ConfigError, match=f"no step {step}: the run has 12, counted from 1"):
        shown(run, step)


def test_a_folder_that_is_no_run_is_refused(tiny_shards: Path) -> None:
    with pytest.raises(ConfigError, match="not a run folder"):
        shown(tiny_shards, 1)


def test_settings_changed_by_hand_are_refused(shared_tiny_config: Callable[..., TrainConfig]) -> None:
    config = shared_tiny_config(max_steps=1)
    train(config)
    path = RunFolder(Path(config.out)).config
    path.write_text(path.read_text().replace("seed: 0", "seed: 1"))
    with pytest.raises(DataError, match="seed: was 0, now 1"):
        shown(Path(config.out), 1)


def test_rows_are_not_listed_from_a_changed_shard(
    shared_tiny_config: Callable[..., TrainConfig], tiny_shards: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_shards, tmp_path / "copy")
    config = replace(shared_tiny_config(max_steps=1), shards=str(folder))
    train(config)
    path = min(folder.glob("train-*.arrow"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path.name}: changed"):
        shown(Path(config.out), 1)


def test_a_step_that_was_not_taken_yet_says_so(shared_tiny_config: Callable[..., TrainConfig]) -> None:
    config = shared_tiny_config()
    with RunFolder.hold(Path(config.out), SINGLE) as folder:
        read_inputs(config, folder, SINGLE)
    assert "not in metrics.jsonl: the step is still to come" in shown(Path(config.out), 12)
