"""The files bundled with the code, laid out as in the repository: recipes, mixtures, samples, configs, scripts."""

from pathlib import Path

RESOURCES = Path(__file__).with_name("resources")
"""In the repository its folders are links to those of the same names; in a wheel they are the folders themselves."""
RECIPES = RESOURCES / "data_recipes"
MIXTURES = RECIPES / "mixtures"
CONFIGS = RESOURCES / "configs"
BATCH_SCRIPTS = RESOURCES / "slurm"


def bundled(path: Path) -> Path | None:
    """The bundled file or folder at this path of the repository, such as data_recipes/sample, or None."""
    inside = RESOURCES / path
    return inside if not path.is_absolute() and ".." not in path.parts and inside.exists() else None


def names_in(folder: Path) -> list[str]:
    """The names of the YAML files of a folder, without suffix."""
    return sorted(path.stem for path in folder.glob("*.yaml"))
