"""The recipes as a build loads them: by file path, outside any package."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sft.data.sources.recipe import Convert, load_converter

RECIPES = Path(__file__).parents[2] / "data_recipes"


@pytest.fixture(scope="session")
def recipes() -> Path:
    """The folder of all recipes."""
    return RECIPES


@pytest.fixture(scope="session")
def convert_of() -> Callable[..., Convert]:
    """A source's convert function by the source's name, with the named switches on."""
    loaded: dict[tuple[str, ...], Convert] = {}

    def convert(source: str, *switches: str) -> Convert:
        if (source, *switches) not in loaded:
            loaded[source, *switches] = load_converter(RECIPES / source, dict.fromkeys(switches, True))
        return loaded[source, *switches]

    return convert
