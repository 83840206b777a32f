import dataclasses
import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sft.config.train import CheckpointConfig
from sft.errors import StorageError
from sft.train.checkpoint.checkpointer import kept_steps, retire
from sft.train.checkpoint.state import State
from sft.train.checkpoint.store import (
    checkpoint_path,
    clean,
    damage,
    newest_whole,
    open_staging,
    publish_staging,
    published,
    require_whole,
)
from sft.train.monitor.counts import Counts
from tests.support.checkpoints import publish

KEEP_TWO = CheckpointConfig(keep_last=2)
Hurt = Callable[[Path], object]


def state(step: int) -> State:
    return State(
        step=step,
        position=4 * step,
        epoch=step / 10,
        counts=Counts(num_steps=step),
        identity={"seed": 0},
        config={},
        shards={},
        engine={},
        ledger="",
        eval_loss=None,
        rng={"cpu": "00"},
        versions={},
    )


def save(checkpoints: Path, step: int) -> Path:
    def write(folder: Path) -> None:
        save_file({"weight": torch.arange(64.0) + step}, folder / "model.safetensors")
        state(step).write(folder)

    return publish(checkpoints, step, write)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    for step in (8, 100, 20):
        save(tmp_path, step)
    return tmp_path


def test_the_step_decides_which_checkpoint_is_the_newest(checkpoints: Path) -> None:
    newest = newest_whole(checkpoints, set_aside=True)
    assert newest == checkpoints / "step-00000100"
    assert require_whole(newest) == state(100)


def edit_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def hurt_a_key(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"bytes"', '"bxtes"'))


DAMAGE: dict[str, Hurt] = {
    "bit flipped": lambda folder: (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:-1] + b"\1"
    ),
    "file cut": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "file missing": lambda folder: (folder / "state.json").unlink(),
    "file added": lambda folder: (folder / "extra.bin").write_bytes(b"x"),
    "manifest missing": lambda folder: (folder / "manifest.json").unlink(),
    "manifest cut": lambda folder: (folder / "manifest.json").write_text('{"kind": "check'),
    "manifest of another step": lambda folder: shutil.copy(
        folder.with_name("step-00000020") / "manifest.json", folder / "manifest.json"
    ),
    "manifest of another kind": lambda folder: edit_manifest(folder, kind="shards"),
    "manifest without files": lambda folder: edit_manifest(folder, files=None),
    "manifest with a damaged key": hurt_a_key,
    "empty folder": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_checkpoint_is_kept_aside_and_the_one_before_is_used(name: str, checkpoints: Path) -> None:
    DAMAGE[name](checkpoints / "step-00000100")
    assert list(damage(checkpoints / "step-00000100"))
    with pytest.raises(StorageError, match="not a whole checkpoint"):
        require_whole(checkpoints / "step-00000100")
    assert newest_whole(checkpoints, set_aside=True) == checkpoints / "step-00000020"
    assert (checkpoints / ".bad-step-00000100").is_dir()


def test_second_bad_checkpoint_of_a_step_does_not_replace_the_first(checkpoints: Path) -> None:
    for _ in range(2):
        shutil.rmtree(checkpoints / "step-00000100", ignore_errors=True)
        save(checkpoints, 100)
        (checkpoints / "step-00000100/state.json").unlink()
        newest_whole(checkpoints, set_aside=True)
    assert sorted(path.name for path in checkpoints.glob(".bad-*")) == [
        ".bad-step-00000100",
        ".bad-step-00000100-2",
    ]


def test_checkpoint_of_a_newer_program_is_refused_and_left_alone(checkpoints: Path) -> None:
    edit_manifest(checkpoints / "step-00000100", schema_version=3)
    with pytest.raises(StorageError, match="schema version 3, this program reads 2"):
        newest_whole(checkpoints, set_aside=True)
    assert (checkpoints / "step-00000100").is_dir()


def test_second_save_of_a_step_is_refused_and_the_first_stays_whole(checkpoints: Path) -> None:
    with pytest.raises(StorageError, match="exists already"):
        save(checkpoints, 100)
    assert not list(damage(checkpoints / "step-00000100"))


def test_empty_folder_under_the_final_name_gives_way(tmp_path: Path) -> None:
    (tmp_path / "step-00000008").mkdir()
    assert require_whole(save(tmp_path, 8)).step == 8


def test_failed_save_leaves_nothing_and_names_the_checkpoint(checkpoints: Path) -> None:
    before = sorted(checkpoints.iterdir())
    final = checkpoint_path(checkpoints, 120)
    (open_staging(final, 0) / "model.safetensors").write_bytes(b"half")
    with pytest.raises(StorageError, match="step-00000120: cannot be written: disk full"):
        publish_staging(final, 120, {}, ["disk full"])
    assert sorted(checkpoints.iterdir()) == before


def test_save_is_refused_before_a_byte_is_written_if_the_disk_is_too_full(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, 12 * 10**9))
    with pytest.raises(StorageError, match=r"12\.0 GB free, a checkpoint needs 13\.0 GB"):
        open_staging(checkpoint_path(checkpoints, 120), 10 * 10**9)
    assert not list(checkpoints.glob(".staging-*"))


def test_newest_checkpoints_are_kept_and_folders_without_a_manifest_do_not_count(checkpoints: Path) -> None:
    (checkpoints / "step-00000200").mkdir()
    retire(checkpoints, KEEP_TWO)
    assert [path.name for path in published(checkpoints)] == ["step-00000200", "step-00000100", "step-00000020"]
    assert not list(checkpoints.glob(".trash-*"))


def test_checkpoint_that_cannot_be_deleted_is_only_a_warning(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("no")

    with monkeypatch.context() as readonly:
        readonly.setattr(shutil, "rmtree", refuse)
        retire(checkpoints, KEEP_TWO)
    assert "cannot be deleted" in caplog.text
    assert [path.name for path in published(checkpoints)] == ["step-00000100", "step-00000020"]
    clean(checkpoints)
    assert not list(checkpoints.glob(".trash-*"))


def test_left_overs_of_killed_processes_are_cleaned_and_bad_ones_kept(checkpoints: Path) -> None:
    for name in (".staging-step-00000120", ".trash-step-00000004", ".bad-step-00000012"):
        (checkpoints / name).mkdir()
        (checkpoints / name / "model.safetensors").write_bytes(b"half")
    clean(checkpoints)
    assert [path.name for path in checkpoints.glob(".*")] == [".bad-step-00000012"]


@pytest.mark.parametrize(
    ("keep_best", "keep_every_steps", "expected"),
    [(0, 0, {90, 100}), (1, 0, {30, 90, 100}), (2, 0, {10, 30, 90, 100}), (1, 50, {30, 50, 90, 100})],
)
def test_the_newest_the_best_and_one_now_and_then_are_kept(
    keep_best: int, keep_every_steps: int, expected: set[int]
) -> None:
    found = [(step, None if step == 20 else abs(step - 25) / 10 + step / 1000) for step in range(10, 101, 10)]
    config = dataclasses.replace(KEEP_TWO, keep_best=keep_best, keep_every_steps=keep_every_steps)
    assert set(kept_steps(found, config)) == expected
