"""The frame of the `sft` command."""

import pytest

from sft.cli.main import main


@pytest.mark.parametrize("command", ["demo", "fetch", "build", "train", "eval", "chat", "export", "inspect", "diff"])
def test_settings_are_explained_where_they_are_taken(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    takes_settings = command not in ("demo", "inspect", "diff")
    shown = capsys.readouterr().out
    assert ("key=value settings win" in shown) == ("--print-config" in shown) == takes_settings
