import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sft.errors import StorageError
from sft.train.checkpoint.state import State
from sft.train.monitor.counts import Counts

STATE = State(
    step=3,
    position=12,
    epoch=0.5,
    counts=Counts(num_steps=3, recent_losses=[2.5, 2.0]),
    identity={"seed": 0},
    config={"seed": 0},
    shards={"name": "tiny"},
    engine={"num_updates": 3},
    ledger="00ff",
    eval_loss=None,
    rng={"cpu": "00"},
    versions={"torch": "2"},
)


@pytest.mark.parametrize("trainer", [{}, {"ppo": {"kl_coefficient": 0.1, "num_episodes": 7}}], ids=["none", "ppo"])
def test_what_is_written_is_read_with_the_state_of_a_trainer_of_its_own(
    trainer: dict[str, Any], tmp_path: Path
) -> None:
    state = dataclasses.replace(STATE, trainer=trainer)
    state.write(tmp_path)
    assert State.read(tmp_path) == state


def test_a_checkpoint_from_before_trainers_had_state_is_read(tmp_path: Path) -> None:
    STATE.write(tmp_path)
    path = tmp_path / "state.json"
    values = json.loads(path.read_text())
    del values["trainer"]
    path.write_text(json.dumps(values))
    assert State.read(tmp_path) == STATE


def test_a_state_that_is_no_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"step": 3}')
    with pytest.raises(StorageError, match="not readable"):
        State.read(tmp_path)
