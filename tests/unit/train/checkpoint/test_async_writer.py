"""Saves that run beside training: whole, of one moment, and given up together."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sft.config.model import ModelConfig
from sft.errors import StorageError
from sft.model.neox.model import NeoX
from sft.train.checkpoint import async_writer
from sft.train.checkpoint.async_writer import BUSY, IDLE, WRITTEN, AsyncWriter
from sft.train.checkpoint.store import checkpoint_path, damage, published
from sft.train.distributed.ranks import SINGLE, RankGroup
from sft.train.engine.base import TensorSlice
from tests.support.ranks import run_ranks

SHAPE = ModelConfig(vocab_size=8, hidden_size=4, num_layers=1, num_heads=1, intermediate_size=4, rotary_pct=0.5)


def slices_of(weights: dict[str, torch.Tensor]) -> list[TensorSlice]:
    return [TensorSlice("weight", name, 0, tensor, is_whole=True) for name, tensor in weights.items()]


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in NeoX(SHAPE).named_parameters()}


def write_rest(folder: Path) -> list[Path]:
    (folder / "state.json").write_text("{}")
    return [folder / "state.json"]


def test_a_checkpoint_holds_the_weights_of_the_moment_that_it_was_begun(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    writer = AsyncWriter(tmp_path, SINGLE, SHAPE)
    assert writer.status == IDLE
    writer.begin(7, 0, slices_of(weights), write_rest)
    writer.before_update()
    for tensor in weights.values():
        tensor.fill_(1.0)  # the next step
    writer.wait()
    assert writer.status == WRITTEN
    assert writer.publish() == 7
    assert writer.status == IDLE
    (folder,) = published(tmp_path)
    assert not list(damage(folder))
    assert not any(tensor.any() for tensor in load_file(folder / "model.safetensors").values())


def test_an_update_waits_for_the_copy_but_not_for_the_disk(
    weights: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = threading.Event()
    original = async_writer.write_slices

    def slow(*arguments: Any) -> Any:
        disk.wait(30)
        return original(*arguments)

    monkeypatch.setattr(async_writer, "write_slices", slow)
    writer = AsyncWriter(tmp_path, SINGLE, SHAPE)
    writer.begin(7, 0, slices_of(weights), write_rest)
    writer.before_update()
    assert writer.status == BUSY
    assert not published(tmp_path)
    disk.set()
    writer.wait()
    writer.publish()
    assert checkpoint_path(tmp_path, 7).is_dir()


def test_a_failed_write_names_the_checkpoint_and_leaves_nothing(
    weights: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(async_writer, "write_slices", refuse)
    writer = AsyncWriter(tmp_path, SINGLE, SHAPE)
    writer.begin(7, 0, slices_of(weights), write_rest)
    writer.before_update()  # does not hang
    writer.wait()
    with pytest.raises(StorageError, match=r"step-00000007: cannot be written: .*No space left"):
        writer.publish()
    assert not list(tmp_path.iterdir())
    assert writer.status == IDLE


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_writer_that_dies_of_anything_publishes_nothing(
    weights: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(async_writer, "write_slices", die)
    writer = AsyncWriter(tmp_path, SINGLE, SHAPE)
    writer.begin(7, 0, slices_of(weights), write_rest)
    writer.wait()
    with pytest.raises(StorageError, match="its writer ended early"):
        writer.publish()
    assert not list(tmp_path.iterdir())


def save_in_parts(ranks: RankGroup, checkpoints: str, failing: int | None) -> Any:
    def refuse(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    if ranks.rank == failing:
        async_writer.write_slices = refuse
    parameter = torch.arange(10.0)
    mine = TensorSlice("weight", "w", 5 * ranks.rank, parameter[5 * ranks.rank :][:5], is_whole=False)
    writer = AsyncWriter(Path(checkpoints), ranks, SHAPE)
    writer.begin(3, 0, [mine], write_rest)
    writer.wait()
    try:
        writer.publish()
    except StorageError as error:
        return str(error)
    return "published"


def test_several_processes_write_one_checkpoint(tmp_path: Path) -> None:
    assert run_ranks(2, save_in_parts, str(tmp_path), None) == ["published"] * 2
    (folder,) = published(tmp_path)
    assert not list(damage(folder))
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert {"weights-00001-of-00002.safetensors", "weights-00002-of-00002.safetensors", "config.json"} < files.keys()


@pytest.mark.parametrize("failing", [0, 1])
def test_one_process_that_cannot_write_gives_the_checkpoint_up_for_all(failing: int, tmp_path: Path) -> None:
    told = run_ranks(2, save_in_parts, str(tmp_path), failing)
    assert all("No space left" in text for text in told)
    assert not list(tmp_path.iterdir())
