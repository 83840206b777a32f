"""What travels with the code is found by its path in the repository, and by nothing else."""

from pathlib import Path

import pytest

from sft.bundle import BATCH_SCRIPTS, CONFIGS, MIXTURES, RESOURCES, bundled, names_in

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "path", ["configs/tiny_cpu.yaml", "data_recipes/sample", "data_recipes/hh/convert.py", "slurm/lib.sh"]
)
def test_a_file_or_folder_has_its_path_of_the_repository(path: str) -> None:
    found = bundled(Path(path))
    assert found is not None
    assert found.samefile(ROOT / path)


@pytest.mark.parametrize("path", ["configs/none.yaml", "../config.py", "configs/../configs", "/etc/hostname"])
def test_nothing_else_is_found(path: str) -> None:
    assert bundled(Path(path)) is None


def test_the_folders_are_those_of_the_repository() -> None:
    assert {path.name for path in RESOURCES.iterdir()} == {"configs", "data_recipes", "slurm"}
    assert (BATCH_SCRIPTS / "train.sbatch").is_file()
    assert names_in(CONFIGS) == sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    assert "sample" in names_in(MIXTURES)
