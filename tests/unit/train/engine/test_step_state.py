"""Named sums from the micro-batches to the result of a step."""

import torch

from sft.config.model import InitConfig
from sft.config.train import TrainConfig
from sft.train.engine.step_state import StepState

CONFIG = TrainConfig(
    shards="shards",
    out="out",
    model=InitConfig("scratch", "tiny"),
    precision="fp16",
    batch_packs=4,
    micro_batch_packs=2,
)


def make() -> StepState:
    return StepState(CONFIG, ("loss", "margin"), torch.device("cpu"))


def test_sums_are_added_up_by_name_and_forgotten_after_the_step() -> None:
    state = make()
    for loss, margin in ((1.0, 0.25), (2.0, 0.5)):
        state.add({"loss": torch.tensor(loss, requires_grad=True), "margin": torch.tensor(margin)})
    result = state.finish(state.named(state.sums_M().tolist()), 1.5, is_finite=True)
    assert (result.loss_sum, result.grad_norm, result.sums) == (3.0, 1.5, {"loss": 3.0, "margin": 0.75})
    assert state.sums_M().tolist() == [0.0, 0.0]


def test_a_skipped_step_is_no_update_and_halves_the_scale() -> None:
    state = make()
    scale = state.gradient_scale
    result = state.finish({"loss": 1.0, "margin": 0.0}, float("inf"), is_finite=False)
    assert (result.is_skipped, state.num_updates, state.gradient_scale) == (True, 0, scale / 2)
    assert result.scale * CONFIG.batch_packs == scale


def test_it_goes_on_from_its_state() -> None:
    state, other = make(), make()
    state.finish({"loss": 1.0, "margin": 0.0}, 1.0, is_finite=True)
    state.finish({"loss": 1.0, "margin": 0.0}, 1.0, is_finite=False)
    other.restore(state.state())
    assert (other.num_updates, other.gradient_scale) == (1, state.gradient_scale)
