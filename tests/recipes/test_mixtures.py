"""The mixtures name sources, settings and switches that exist, and say what their names promise."""

import inspect
from pathlib import Path

import pytest

from sft.config.data import BuildConfig
from sft.data.sources.recipe import load_converter, load_mixture

RECIPES = Path(__file__).parents[2] / "data_recipes"
MIXTURES = sorted(path.stem for path in (RECIPES / "mixtures").glob("*.yaml"))
AS_RELEASED, CORRECTED = "stablelm_tuned_alpha_as_released", "stablelm_tuned_alpha"


def load(mixture: str, *arguments: str) -> BuildConfig:
    arguments = ("sources_dir=raw", "tokenizer=tokenizer.json", "out=shards", *arguments)
    return load_mixture(RECIPES / "mixtures" / f"{mixture}.yaml", arguments).config


@pytest.mark.parametrize("mixture", MIXTURES)
def test_switches_of_a_mixture_are_known_to_its_recipes(mixture: str) -> None:
    sources = load(mixture).sources
    converters = [load_converter(RECIPES / name, source.switches) for name, source in sources.items()]
    assert len(converters) == 5


def test_as_released_sets_every_switch_there_is() -> None:
    for name, source in load(AS_RELEASED).sources.items():
        parameters = inspect.signature(load_converter(RECIPES / name)).parameters.values()
        known = {item.name: True for item in parameters if item.kind is item.KEYWORD_ONLY}
        assert source.switches == known, name


def test_as_released_neither_repairs_nor_compares_nor_filters() -> None:
    config = load(AS_RELEASED)
    assert (config.end_token, config.supervise) == (False, "all")
    for source in config.sources.values():
        assert (source.repair, source.duplicates, source.decontaminate) == (False, "keep", False)
        assert (source.refusals, source.personal_data, source.near_duplicates) == ("keep", "keep", None)


def test_no_other_mixture_sets_a_switch() -> None:
    sources = [source for name in MIXTURES if name != AS_RELEASED for source in load(name).sources.values()]
    assert all(source.switches == {} for source in sources)


def test_one_fault_can_be_switched_on_by_itself() -> None:
    config = load(CORRECTED, "sources.hh.switches.split_on_blank_lines=true")
    assert config.sources["hh"].switches == {"split_on_blank_lines": True}
    released = load(AS_RELEASED, "sources.dolly.switches.category_systems=false")
    assert released.sources["dolly"].switches["category_systems"] is False
    assert released.sources["dolly"].switches["keep_reference_marks"] is True
