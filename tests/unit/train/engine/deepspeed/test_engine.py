"""The DeepSpeed engine computes what the torch engine computes, at any stage and with any number of processes."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from sft.config.train import TrainConfig
from tests.support.deepspeed import (
    KINDS,
    NUM_STEPS,
    MakeConfig,
    Tensors,
    assert_same_bits,
    batches_of,
    distance,
    make_engine,
    preload,
    run,
    save,
    saved_tensors,
    take_step,
    zero,
)
from tests.support.ranks import run_ranks

if find_spec("deepspeed") is None:
    pytest.skip("deepspeed is not installed (extra `deepspeed`)", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_HALF_STEPS = 6
LOSS_TOLERANCE = 1e-6
NORM_TOLERANCE = 2e-6
TENSOR_TOLERANCE = 1e-5
"""Of all weights and moments together: AdamW blows up the rounding of small gradients, so few weights go further."""
HALF_LOSS_TOLERANCE = {"bf16": 1e-3, "fp16": 1e-4}
"""Rounding to half precision turns the last bits of an fp32 number into some of its own."""

Reference = tuple[list[dict[str, Any]], Tensors]


@pytest.fixture(autouse=True, scope="module")
def _preloaded() -> None:
    preload()


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Results and tensors of the torch engine in one process, by precision."""
    made: dict[str, Reference] = {}

    def reference(config: TrainConfig) -> Reference:
        if config.precision not in made:
            engine = make_engine(replace(config, engine="torch"))
            num_steps = NUM_STEPS if config.precision == "fp32" else NUM_HALF_STEPS
            results = [take_step(engine, config, step) for step in range(num_steps)]
            made[config.precision] = results, saved_tensors(config, save(engine, tmp_path_factory.mktemp("torch")))
        return made[config.precision]

    return reference


def train(
    config: TrainConfig,
    size: int,
    out: Path,
    steps: tuple[int, int] = (0, NUM_STEPS),
    before: tuple[Path, Any] | tuple[None, None] = (None, None),
) -> tuple[list[dict[str, Any]], Any]:
    """Results of the steps, which are the same in every process, and the state after them."""
    folder, state = before
    found = run_ranks(size, run, config, str(out), steps, folder and str(folder), state)
    assert found == [found[0]] * size
    results, state = found[0]
    return results, state


def losses(results: list[dict[str, Any]]) -> list[float]:
    return [result["loss"] for result in results]


@pytest.mark.parametrize(
    ("size", "stage", "offload"),
    [
        *((size, stage, False) for size in (1, 2, 4) for stage in (0, 1, 2, 3)),
        *((2, stage, True) for stage in (1, 2, 3)),
        (3, 2, False),  # the processes do not have equally many packs
    ],
)
def test_losses_norms_and_weights_are_those_of_the_torch_engine(
    size: int, stage: int, offload: bool, tiny_config: MakeConfig, references: Any, tmp_path: Path
) -> None:
    config = zero(tiny_config(micro_batch_packs=1), stage, offload=offload)
    expected, expected_tensors = references(config)
    results, _ = train(config, size, tmp_path)
    assert losses(results) == pytest.approx(losses(expected), rel=LOSS_TOLERANCE)
    assert [it["grad_norm"] for it in results] == pytest.approx(
        [it["grad_norm"] for it in expected], rel=NORM_TOLERANCE
    )
    assert not any(it["is_skipped"] for it in results)
    found = saved_tensors(config, tmp_path)
    assert max(distance(found, expected_tensors, kind) for kind in KINDS) < TENSOR_TOLERANCE


@pytest.mark.parametrize("stage", [0, 1, 3])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_rounds_as_in_the_torch_engine(
    precision: Any, stage: int, tiny_config: MakeConfig, references: Any, tmp_path: Path
) -> None:
    config = zero(tiny_config(precision=precision, micro_batch_packs=1), stage)
    expected, _ = references(config)
    results, _ = train(config, 2, tmp_path, (0, NUM_HALF_STEPS))
    assert losses(results) == pytest.approx(losses(expected), rel=HALF_LOSS_TOLERANCE[precision])
    assert [it["scale"] for it in results] == [it["scale"] for it in expected]


@pytest.mark.parametrize("policy", ["cheap", "full"])
def test_gradients_of_recomputed_blocks_are_the_same(
    policy: str, tiny_config: MakeConfig, references: Any, tmp_path: Path
) -> None:
    config = zero(tiny_config(micro_batch_packs=1, activation_checkpointing=policy), 3)
    results, _ = train(config, 2, tmp_path, (0, 6))
    assert losses(results) == pytest.approx(losses(references(config)[0][:6]), rel=LOSS_TOLERANCE)


def test_a_run_goes_on_at_any_size_and_stage_and_with_the_other_engine(
    tiny_config: MakeConfig, references: Any, tmp_path: Path
) -> None:
    config = tiny_config(micro_batch_packs=1)
    legs = [(4, 3, False), (2, 1, False), (1, None, False), (2, 2, True), (2, 0, False), (3, 3, True), (1, None, False)]
    results: list[dict[str, Any]] = []
    before: Any = (None, None)
    for number, (size, stage, offload) in enumerate(legs):
        leg = config if stage is None else zero(config, stage, offload=offload)
        more, state = train(leg, size, tmp_path / str(number), (2 * number, 2 * number + 2), before)
        assert state["num_updates"] == 2 * number + 2
        results, before = results + more, (tmp_path / str(number), state)
    expected, _ = references(config)
    assert losses(results) == pytest.approx(losses(expected[: len(results)]), rel=LOSS_TOLERANCE)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_run_goes_on_with_the_same_bits_with_as_many_processes(
    stage: int, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    config = zero(tiny_config(micro_batch_packs=1, precision="fp16", fp16__scale_window=3), stage)
    straight, end = train(config, 2, tmp_path / "straight", (0, 4))
    first, state = train(config, 2, tmp_path / "first", (0, 2))
    second, same_end = train(config, 2, tmp_path / "second", (2, 4), (tmp_path / "first", state))
    assert first + second == straight
    assert same_end == end
    assert straight[3]["scale"] == 2 * straight[2]["scale"]
    assert_same_bits(saved_tensors(config, tmp_path / "second"), saved_tensors(config, tmp_path / "straight"))


def test_what_is_saved_before_the_first_update_can_be_gone_on_from(tiny_config: MakeConfig, tmp_path: Path) -> None:
    config = zero(tiny_config(), 3)
    _, state = train(config, 2, tmp_path / "none", (0, 0))
    assert state["num_updates"] == 0
    first, _ = train(config, 2, tmp_path / "first", (0, 2), (tmp_path / "none", state))
    straight, _ = train(config, 2, tmp_path / "straight", (0, 2))
    assert first == straight


def measured(ranks: Any, config: TrainConfig) -> Any:
    """What is measured between the micro-batches of a step, and the step's result."""
    engine = make_engine(config)
    take_step(engine, config, 0, ranks)
    (batch, *_), _ = batches_of(config, 1, ranks)
    found = [array.tolist() for array in engine.measure(batch)]
    return found, take_step(engine, config, 1, ranks)


@pytest.mark.parametrize("stage", [1, 3])
def test_measuring_finds_what_the_torch_engine_finds_and_changes_nothing(stage: int, tiny_config: MakeConfig) -> None:
    config = zero(tiny_config(batch_packs=2, micro_batch_packs=1), stage)
    expected_first, expected_step = run_ranks(1, measured, replace(config, engine="torch", micro_batch_packs=1))[0]
    (first, step), (_, same_step) = run_ranks(2, measured, config)
    assert first[0] == pytest.approx(expected_first[0], rel=1e-5)
    assert first[1] == expected_first[1]
    assert step == same_step == pytest.approx(expected_step, rel=1e-6)


def test_nothing_is_printed(tiny_config: MakeConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(zero(tiny_config(), 3), 2, tmp_path, (0, 1))
    train(zero(tiny_config(), 2, offload=True), 2, tmp_path / "offloaded", (0, 1))
    assert capfd.readouterr() == ("", "")
