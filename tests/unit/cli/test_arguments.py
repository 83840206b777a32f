"""Which file a command takes: the user's own, otherwise the one that came with sft, and it says so."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sft.bundle import CONFIGS, MIXTURES, RESOURCES
from sft.cli.arguments import config_file, folder_of_rows, mixture_file
from sft.errors import ConfigError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("find", "word", "found"),
    [
        (mixture_file, "data_recipes/mixtures/sample.yaml", MIXTURES / "sample.yaml"),
        (mixture_file, "sample", MIXTURES / "sample.yaml"),
        (config_file, "configs/tiny_cpu.yaml", CONFIGS / "tiny_cpu.yaml"),
        (config_file, "tiny_cpu", CONFIGS / "tiny_cpu.yaml"),
    ],
)
def test_what_is_not_here_is_taken_from_what_came_with_sft(
    find: Callable[[Path], Path], word: str, found: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find(Path(word)) == found
    assert capsys.readouterr() == ("", f"{word} is not in this folder; sft uses its own copy: {found}\n")


def test_a_file_that_is_here_wins_without_a_word(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = Path("configs/tiny_cpu.yaml")
    (here / own).parent.mkdir()
    (here / own).touch()
    assert config_file(own) == own
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("word", ["tiny", "nowhere/tiny_cpu", "../tiny_cpu", "configs", "/tiny_cpu", "sample", "."])
def test_what_is_nowhere_is_named_with_the_names_there_are(word: str) -> None:
    with pytest.raises(ConfigError, match="no such file") as caught:
        config_file(Path(word))
    assert word in str(caught.value)
    assert "small_cpu" in str(caught.value.hint)


def test_rows_are_taken_from_their_own_folder_or_the_bundled_sample(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert folder_of_rows("raw") == "raw"
    assert capsys.readouterr().err == ""
    assert folder_of_rows("data_recipes/sample") == str(RESOURCES / "data_recipes/sample")
    assert "data_recipes/sample is not in this folder" in capsys.readouterr().err
    (here / "data_recipes/sample").mkdir(parents=True)
    assert folder_of_rows("data_recipes/sample") == "data_recipes/sample"
