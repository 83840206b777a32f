"""The comparison of pages with what commands print: it must fail where it should."""

from pathlib import Path

import pytest

from tests.support.docs import ROOT, Block, Command, commands, fitted, masked
from tests.support.docs_dry import calls, problems


def block(text: str) -> Block:
    return Block(ROOT / "README.md", "sh", text, 0, 0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("loss 0.026 · 9,531 tok/s", "loss 0.031 · 812 tok/s"),
        ("content 115f8b20b49f", "content ed4206f6f8e1"),
        (
            "│ all      │ 9.7588  │ 17,305.95  │ 3.38%          │",
            "│ all │ 9.7601 │ 7,305.1 │ 4.10% │".replace("5.1", "5.11"),
        ),
        ("loss against fp32      9.7e-08 (3.8e-06)", "loss against fp32  0 (3.8e-06)"),
        ("stopped after step 59 of 255", "stopped after step 3 of 255"),
        ("time: 255 steps, about 0:00:32 without saving", "time: 255 steps, about 0:01:56 without saving"),
    ],
)
def test_what_differs_between_machines_is_masked(one: str, other: str) -> None:
    assert masked([one]) == masked([other])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "│ train │ 17    │ 58        │ 7,819  │ 16.2%      │ 89.832% │",
            "│ train │ 17 │ 58 │ 7,819 │ 16.2% │ 89.833% │",
        ),
        ("trained 255 steps", "trained 254 steps"),
        ("exit code 75", "exit code 74"),
        ("loss, packed (3.8e-06)", "loss, packed (3.8e-05)"),
        ("packs 14, 8, 2, 7", "packs 14, 8, 7, 2"),
        ("tokens 0–170", "tokens 0–171"),
    ],
)
def test_what_should_not_differ_is_compared(one: str, other: str) -> None:
    assert masked([one]) != masked([other])


def test_progress_lines_are_left_out_as_often_as_they_come() -> None:
    lines = [
        "training: 54/255 steps loss 1.773 · 9,914 tok/s · 0:00:37 left",
        "training: 255/255 steps loss 0.026 · 9 tok/s",
    ]
    assert masked(lines) == masked(lines[1:])


def test_lines_left_out_stay_left_out() -> None:
    printed = ["a", "b", "c", "d", "e", "f"]
    assert fitted(["a", "…", "c", "d", "…", "f"], printed) == ["a", "…", "c", "d", "…", "f"]
    assert fitted(["x", "…"], printed) == ["a", "…"]
    assert fitted(["…", "x", "x"], printed) == ["…", "e", "f"]
    assert fitted([], printed) == printed
    with pytest.raises(ValueError, match="not printed any more: z"):
        fitted(["a", "…", "z", "…"], printed)


def test_a_console_block_is_read_command_by_command() -> None:
    assert commands(block("$ one\n1\n2\n$ two\n")) == [Command("one", ["1", "2"]), Command("two")]
    with pytest.raises(ValueError, match="expected a line that begins with"):
        commands(block("one\n"))


def test_the_shell_reads_variables_and_arrays_and_runs_nothing(tmp_path: Path) -> None:
    text = 'data=(a b=c)\nid=$(sbatch --parsable x "${data[@]}")\n.venv/bin/sft train after:$id  # a remark\n'
    assert calls(block(text), tmp_path) == [["sbatch", "--parsable", "x", "a", "b=c"], ["sft", "train", "after:1"]]
    with pytest.raises(ValueError, match="syntax error"):
        calls(block("for\n"), tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        "sft train configs/no_such.yaml",
        "sft train configs/tiny_cpu.yaml save_every_steps=1",
        "sft no-such-command",
        "sbatch slurm/train.sbatch configs/tiny_cpu.yaml epoch=1",
        "sbatch slurm/no_such.sbatch",
        "make no-such-target",
        "python -m tests.no_such",
        "pip install sft[no_such]",
        "mystery",
    ],
)
def test_a_command_that_cannot_be_given_is_found(words: str) -> None:
    assert problems(words.split())


@pytest.mark.parametrize(
    "words",
    [
        "sft train configs/tiny_cpu.yaml checkpoint.every_steps=1",
        "torchrun --nproc_per_node 2 -m sft train configs/tiny_cpu.yaml",
        "sbatch --array=1-8 slurm/build_data_parts.sbatch data_recipes/mixtures/sample.yaml tokenizer=t out=o",
        "make demo",
        "pip install sft[fast,wandb]",
        "python -m tests.faults.runner A1",
    ],
)
def test_a_command_that_can_be_given_is_let_through(words: str) -> None:
    assert problems(words.split()) == []
