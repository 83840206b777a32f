"""Load a mixture file and its recipe folders as a BuildConfig, and a recipe's convert function."""

import difflib
import functools
import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sft.bundle import RECIPES
from sft.chat.conversation import Conversation, Drop
from sft.config.data import BuildConfig, FetchConfig
from sft.config.loading import Layer, Resolved, load, read_arguments
from sft.config.yaml_text import read_yaml
from sft.errors import ConfigError
from sft.hashing import file_sha256

Convert = Callable[[Mapping[str, object]], Conversation | Drop]

RECIPE, CONVERT = "recipe.yaml", "convert.py"


def recipes_dir(mixture: Path) -> Path:
    """The folder of a mixture's recipes: the parent of the mixture's folder or, if it holds none, sft's own recipes."""
    beside = mixture.resolve().parent.parent
    return beside if any(beside.glob(f"*/{RECIPE}")) else RECIPES


def load_mixture(mixture: Path, arguments: Sequence[str]) -> Resolved[BuildConfig]:
    """The resolved build config: recipes first, then the mixture, then the command line.

    Raises: ConfigError for unknown sources or keys and for wrong values, all listed together.
    """
    return load(BuildConfig, _layers(mixture, arguments))


def load_for_fetch(mixture: Path, arguments: Sequence[str]) -> Resolved[FetchConfig]:
    """The resolved config of `sft fetch`, which needs no tokenizer and no output folder."""
    return load(FetchConfig, _layers(mixture, arguments))


def _layers(mixture: Path, arguments: Sequence[str]) -> list[Layer]:
    chosen, typed = read_yaml(mixture), read_arguments(arguments)
    names = chosen.values.get("sources")
    if not isinstance(names, Mapping) or not names:
        raise ConfigError("expected sources: by name", on=mixture, hint="see data_recipes/mixtures/ for examples")
    extra = typed.values.get("sources", {})
    if not isinstance(extra, Mapping):
        raise ConfigError(f"sources: expected a mapping, got {extra!r}", hint="such as sources.alpaca.weight=0.5")
    recipes = [
        _recipe_layer(recipes_dir(mixture), str(name)) for name in [*names, *(n for n in extra if n not in names)]
    ]
    # A source with nothing to override is written as `alpaca:` or `alpaca: {}`.
    sources = {name: {} if overrides is None else overrides for name, overrides in names.items()}
    return [*recipes, Layer(chosen.origin, {**chosen.values, "sources": sources}), typed]


def load_converter(folder: Path, switches: Mapping[str, bool] | None = None) -> Convert:
    """The `convert` function of a recipe folder, with its switches set.

    Raises: ConfigError if it cannot be loaded or knows no such switch.
    """
    path = folder / CONVERT
    spec = importlib.util.spec_from_file_location(f"recipe_{folder.name}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"has no {CONVERT}", on=folder, hint="see data_recipes/README.md, adding a source")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"cannot be loaded: {error!r}", on=path, hint="repair the recipe") from error
    convert: Convert | None = getattr(module, "convert", None)
    if convert is None:
        raise ConfigError("defines no function convert(row)", on=path)
    if not switches:
        return convert
    known = [name for name, item in inspect.signature(convert).parameters.items() if item.kind is item.KEYWORD_ONLY]
    unknown = [name for name in switches if name not in known]
    if unknown:
        advice = f"known: {', '.join(known)}" if known else "it has none"
        raise ConfigError(f"source {folder.name}: no switch {unknown[0]!r}; {advice}", on=path)
    return functools.partial(convert, **switches)


def recipe_digests(folder: Path) -> dict[str, str]:
    """The sha256 of the files that determine how a recipe converts a row."""
    return {name: file_sha256(folder / name) for name in (RECIPE, CONVERT)}


def _recipe_layer(folder: Path, name: str) -> Layer:
    path = folder / name / RECIPE
    if not path.is_file():
        known = sorted(place.parent.name for place in folder.glob(f"*/{RECIPE}"))
        near = difflib.get_close_matches(name, known, n=1)
        advice = f"did you mean {near[0]}?" if near else f"known: {', '.join(known) or 'none there'}"
        raise ConfigError(
            f"no recipe for source {name!r}; {advice}",
            on=path,
            hint="a mixture lies in a folder beside the recipes, as data_recipes/mixtures does",
        )
    layer = read_yaml(path)
    return Layer(layer.origin, {"sources": {name: layer.values}})
