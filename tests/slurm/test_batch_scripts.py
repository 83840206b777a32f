"""The batch scripts from submission to exit, against golden transcripts: every call, the job's log, the exit code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.slurm.conftest import Project

GOLDEN = Path(__file__).parents[1] / "golden" / "slurm"


@dataclass(frozen=True)
class Start:
    """One start of the job: what the world is like, and what happens while the script runs."""

    environ: Mapping[str, str] = field(default_factory=dict)
    events: Sequence[str] = ()


def stopped(restart: int, checkpoint: str = "", **environ: str) -> Start:
    """A start that sft ends with 75, having published a checkpoint or none."""
    return Start({"STUB_EXIT": "75", "STUB_CHECKPOINT": checkpoint, "SLURM_RESTART_COUNT": str(restart), **environ})


def warned(events: Sequence[str], mode: str = "listens", **environ: str) -> Start:
    """A start during which signals come; sft answers with 75."""
    return Start({"STUB_EXIT": "75", "STUB_CHECKPOINT": "step-00000004", "STUB_MODE": mode, **environ}, events)


def task(number: int, array: str = "1-8", **environ: str) -> Start:
    """A start of one task of an array such as `2,5`, as Slurm describes it to the task."""
    ends = [[int(end) for end in piece.split("-")] for piece in array.split(",")]
    numbers = [each for piece in ends for each in range(piece[0], piece[-1] + 1)]
    described = {"ID": number, "COUNT": len(numbers), "MIN": min(numbers), "MAX": max(numbers)}
    return Start({**{f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in described.items()}, **environ})


PARTS = ("build_data_parts.sbatch", ["mixture.yaml", "out=shards"])
TRAIN = ("train.sbatch", ["configs/tiny_cpu.yaml", "out=runs/x"])
CASES: dict[str, tuple[str, Sequence[str], Sequence[Start]]] = {
    "build": ("build_data.sbatch", ["data_recipes/mixtures/sample.yaml", "out=shards", "workers=2"], [Start()]),
    "build_fails": ("build_data.sbatch", ["mixture.yaml"], [Start({"STUB_EXIT": "65"})]),
    "build_in_an_array": ("build_data.sbatch", ["mixture.yaml"], [task(1)]),
    "parts": (*PARTS, [task(1), task(8, SLURM_RESTART_COUNT="1")]),
    "part_fails": (*PARTS, [task(3, STUB_EXIT=code) for code in ("65", "71", "74", "75", "78")]),
    "part_outside_an_array": (*PARTS, [Start()]),
    "parts_from_zero": (*PARTS, [task(0, "0-7"), task(7, "0-7"), task(2, "0,2-3")]),
    "single_parts": (*PARTS, [task(5, "2,5"), task(5, "1,5"), task(5, "2,5", SFT_PARTS="8")]),
    "parts_beyond_the_last": (*PARTS, [task(2, "2,5", SFT_PARTS="4"), task(0, "0-7", SFT_PARTS="8")]),
    "bad_number_of_parts": (*PARTS, [task(1, SFT_PARTS=text) for text in ("08", "0", "-8", "many", "8/8", "9999999")]),
    "missing_argument_parts": ("build_data_parts.sbatch", [], [task(1)]),
    "evaluate": ("evaluate.sbatch", ["runs/a", "runs/b", "max_packs=3"], [Start()]),
    "missing_argument_build": ("build_data.sbatch", [], [Start()]),
    "missing_argument_train": ("train.sbatch", [], [Start()]),
    "missing_argument_evaluate": ("evaluate.sbatch", [], [Start()]),
    "outside_a_job": (*TRAIN, [Start({"SLURM_JOB_ID": ""})]),
    "submitted_elsewhere": (*TRAIN, [Start({"SLURM_SUBMIT_DIR": "/nowhere"})]),
    "no_environment": (*TRAIN, [Start({"SFT_VENV": "/nowhere/venv"})]),
    "bad_restart_limit": (*TRAIN, [Start({"SFT_MAX_RESTARTS": "many"})]),
    "success": (*TRAIN, [Start()]),
    "several_processes": (*TRAIN, [Start({"SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "n[1-2]"})]),
    "odd_arguments": (
        "train.sbatch",
        ["configs/tiny cpu.yaml", "out=runs/x", "note=a = b", 'say="hi"', "$HOME/*", "", "it's"],
        [Start()],
    ),
    "end_time_known": (*TRAIN, [Start({"SLURM_JOB_END_TIME": "1900000000"})]),
    "no_time_limit": (*TRAIN, [Start({"STUB_END_TIME": "N/A"})]),
    "bad_data": (*TRAIN, [Start({"STUB_EXIT": "65"})]),
    "bad_config": (*TRAIN, [Start({"STUB_CONFIG_EXIT": "78"})]),
    "stopped": (*TRAIN, [stopped(0, "step-00000004")]),
    "restart_limit": (*TRAIN, [stopped(20, "step-00000004")]),
    "own_restart_limit": (
        *TRAIN,
        [stopped(0, "step-00000004", SFT_MAX_RESTARTS="1"), stopped(1, "step-00000008", SFT_MAX_RESTARTS="1")],
    ),
    "no_progress": (*TRAIN, [stopped(0, "step-00000004"), stopped(1), stopped(2), stopped(3)]),
    "progress_in_between": (
        *TRAIN,
        [stopped(0), stopped(1), stopped(2, "step-00000004"), stopped(3), stopped(4)],
    ),
    "fallen_back": (
        *TRAIN,
        [
            stopped(0, "step-00000004"),
            stopped(1, "step-00000008"),
            stopped(2, STUB_DAMAGED="step-00000008"),
            stopped(3),
            stopped(4),
        ],
    ),
    "no_progress_of_another_job": (*TRAIN, [stopped(0), stopped(1), stopped(0, SLURM_JOB_ID="8")]),
    "cancelled": (*TRAIN, [stopped(0, "step-00000004", STUB_STATE="COMPLETING")]),
    "controller_silent": (*TRAIN, [stopped(0, "step-00000004", STUB_SQUEUE_FAILS="99")]),
    "controller_busy": (*TRAIN, [stopped(0, "step-00000004", STUB_SQUEUE_FAILS="3")]),
    "requeue_refused": (*TRAIN, [stopped(0, "step-00000004", STUB_SCONTROL_EXIT="1")]),
    "warned_by_usr1": (*TRAIN, [warned(["await running", "signal USR1"])]),
    "warned_by_term": (*TRAIN, [warned(["await running", "signal TERM"])]),
    "warned_but_done": (*TRAIN, [warned(["await running", "signal USR1"], STUB_EXIT="0")]),
    "warned_again_while_saving": (
        *TRAIN,
        [warned(["await running", "signal USR1", "await saving", "signal TERM", "touch go-on"], "slow-save")],
    ),
    "warning_lost_by_srun": (
        *TRAIN,
        [warned(["await running", "signal USR1"], "misses-first")],
    ),
    "warned_before_the_step": (
        *TRAIN,
        [warned(["await resolving", "signal USR1", "touch go-on"], "slow-config")],
    ),
    "warned_before_sft_listens": (*TRAIN, [warned(["await running", "signal USR1"], "deaf")]),
}


@pytest.mark.parametrize("name", CASES)
def test_every_call_and_line_is_as_in_the_golden_transcript(name: str, project: "Project") -> None:
    script, arguments, starts = CASES[name]
    transcripts = []
    for start in starts:
        project.start(script, arguments, start.environ)
        for event in start.events:
            project.play(event)
        transcripts.append(project.finish())
    assert "\n".join(transcripts) == (GOLDEN / f"{name}.txt").read_text()


def test_every_golden_transcript_has_its_case() -> None:
    assert sorted(path.stem for path in GOLDEN.iterdir()) == sorted(CASES)


@pytest.mark.parametrize("variable", ["", "SFT_VENV"])
def test_sft_is_taken_from_the_environment_of_the_project_or_the_one_that_is_named(
    variable: str, project: "Project"
) -> None:
    environment = project.folder / (".venv" if not variable else "other")
    own = environment / "bin" / "sft"
    own.parent.mkdir(parents=True)
    own.write_text('#!/bin/sh\necho "own sft: $*"\n')
    own.chmod(0o755)
    project.start("evaluate.sbatch", ["runs/x"], {variable: str(environment)} if variable else {})
    assert "log   own sft: eval runs/x\nexit  0\n" in project.finish()
