"""What `sft train` prints in place of training."""

from pathlib import Path

import pytest

from sft.cli.main import main


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text("shards: s\nout: elsewhere\nmodel: {weights: scratch, preset: tiny}\n")
    return str(path)


@pytest.mark.parametrize("out", ["runs/x", "runs/it's: here  # 'now'", "'", "#", "a = b"])
def test_the_run_folder_is_printed_as_it_is_and_nothing_else(
    out: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", config, f"out={out}", "--print-run-folder"]) == 0
    assert capsys.readouterr() == (f"{out}\n", "")


def test_no_run_folder_is_printed_for_settings_that_are_wrong(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", config, "optimiser.lr=1", "--print-run-folder"]) == 78
    assert capsys.readouterr().out == ""
