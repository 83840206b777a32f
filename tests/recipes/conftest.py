"""The recipes as a build loads them: by file path, outside any package."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sft.data.recipes import Convert, load_converter

RECIPES = Path(__file__).parents[2] / "data_recipes"


@pytest.fixture(scope="session")
def recipes() -> Path:
    """The folder of all recipes."""
    return RECIPES


@pytest.fixture(scope="session")
def convert_of() -> Callable[[str], Convert]:
    """A source's convert function by the source's name."""
    loaded: dict[str, Convert] = {}

    def convert(source: str) -> Convert:
        if source not in loaded:
            loaded[source] = load_converter(RECIPES / source)
        return loaded[source]

    return convert
