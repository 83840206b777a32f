"""A run is verified from what it wrote down, and every kind of lie is found."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sft.config.train import TrainConfig
from sft.errors import ConfigError, DataError, StorageError
from sft.train.loop import train
from sft.train.monitor.ledger import Ledger, read_lines
from sft.train.verify_run import verify_checkpoint, verify_run


@pytest.fixture(scope="module")
def finished(shared_tiny_config: Callable[..., TrainConfig]) -> Path:
    config = shared_tiny_config(batch_packs=5, micro_batch_packs=5)
    train(config)
    return Path(config.out)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def rewrite(run: Path, change: Callable[[list[str]], list[str]]) -> None:
    path = run / "ledger.jsonl"
    path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))


def swapped(lines: list[str]) -> list[str]:
    """Two steps trade a pack: every pack is still used as often as it should be."""
    first, second = json.loads(lines[0]), json.loads(lines[1])
    first["packs"][0], second["packs"][0] = second["packs"][0], first["packs"][0]
    return [json.dumps(first), json.dumps(second), *lines[2:]]


def reordered(lines: list[str]) -> list[str]:
    entry = json.loads(lines[3])
    return [*lines[:3], json.dumps(entry | {"packs": entry["packs"][::-1]}), *lines[4:]]


def test_a_run_that_used_every_pack_as_often_as_it_should_is_verified(run: Path) -> None:
    *checkpoints, ledger = verify_run(run)
    assert checkpoints[0].endswith("step-00000010: a whole checkpoint of step 10, every hash true")
    assert ledger.endswith("steps 1 to 10 used each of 24 packs exactly 2 times")
    assert verify_checkpoint(run / "checkpoints/step-00000010") == checkpoints[0]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda lines: lines[:-1], "it has 9 whole lines, the newest checkpoint is of step 10"),
        (lambda lines: [*lines[:4], *lines[5:]], "line 5 is of step 6"),
        (lambda lines: [*lines[:4], lines[4][:20], *lines[5:]], "it has 4 whole lines"),
        (swapped, "step 1 used packs"),
        (reordered, "up to step 4 it is not what that checkpoint was saved with"),
        (lambda _lines: [], "it has 0 whole lines"),
    ],
    ids=["end lost", "line lost", "line torn", "packs swapped", "only the order changed", "emptied"],
)
def test_a_ledger_that_was_changed_is_refused(
    change: Callable[[list[str]], list[str]], sentence: str, run: Path
) -> None:
    rewrite(run, change)
    with pytest.raises(DataError, match=sentence):
        list(verify_run(run))


def test_a_damaged_checkpoint_is_named(run: Path) -> None:
    (run / "checkpoints/step-00000008/config.json").unlink()
    with pytest.raises(StorageError, match="step-00000008"):
        list(verify_run(run))


def test_a_run_without_a_checkpoint_cannot_be_verified(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ConfigError, match="no checkpoint yet"):
        list(verify_run(run))


def test_lines_of_steps_that_are_taken_again_are_dropped(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "ledger.jsonl", 0)
    for step in (1, 2):
        first.add(step, [step])
    first.sync()
    digest = first.digest
    first.add(3, [3])
    first.sync()
    again = Ledger(tmp_path / "ledger.jsonl", 2)
    assert again.digest == digest
    again.add(3, [4])
    again.sync()
    assert [json.loads(line)["packs"] for line in read_lines(tmp_path / "ledger.jsonl")] == [[1], [2], [4]]


def test_a_ledger_that_could_not_be_written_is_whole_after_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, 0)
    ledger.add(1, [1])

    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("os.fsync", refuse)
        with pytest.raises(StorageError, match="No space left"):
            ledger.sync()
    ledger.add(2, [2])
    ledger.sync()
    assert [json.loads(line)["step"] for line in read_lines(path)] == [1, 2]
