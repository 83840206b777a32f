"""A mixture and its recipes become a build config."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft.bundle import RECIPES
from sft.chat.conversation import Conversation
from sft.data.sources.recipe import load_converter, load_mixture, recipe_digests, recipes_dir
from sft.errors import ConfigError

Write = Callable[..., Any]


def rewrite(path: Path, **changes: Any) -> None:
    """Change a file of settings; an ellipsis leaves one out."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))


@pytest.fixture
def raw(write_mixture: Write) -> Any:
    """Two sources, alpha and beta."""
    return write_mixture(alpha=[["a", "b"]], beta=[["c", "d"]])


def test_a_recipe_gives_what_the_mixture_and_the_command_line_do_not(raw: Any) -> None:
    rewrite(raw.recipes / "alpha" / "recipe.yaml", weight=0.1, max_rows=1, language="en")
    rewrite(raw.mixture, sources={"alpha": {"weight": 0.2, "max_rows": 2}, "beta": {}}, seq_len=128, seed=3)
    loaded = load_mixture(raw.mixture, [*raw.settings, "sources.alpha.weight=0.3", "seq_len=256"])
    alpha = loaded.config.sources["alpha"]
    assert (alpha.weight, alpha.max_rows, alpha.language, alpha.title) == (0.3, 2, "en", "Turns")
    assert (loaded.config.seq_len, loaded.config.seed, loaded.config.name) == (256, 3, "test")
    origins = {name: loaded.origins[f"sources.alpha.{name}"] for name in ("weight", "max_rows", "language")}
    assert origins == {
        "weight": "command line",
        "max_rows": str(raw.mixture),
        "language": str(raw.recipes / "alpha" / "recipe.yaml"),
    }


@pytest.mark.parametrize("nothing", [None, {}])
def test_a_source_without_overrides_is_its_recipe(nothing: Any, raw: Any) -> None:
    rewrite(raw.mixture, sources={"alpha": nothing})
    assert list(raw.config().sources) == ["alpha"]
    assert raw.config().sources["alpha"].enabled


def test_a_source_can_be_switched_off_and_another_one_added(raw: Any) -> None:
    rewrite(raw.mixture, sources={"alpha": {}})
    config = raw.config("sources.alpha.enabled=false", "sources.beta.weight=0.5")
    assert {name: source.enabled for name, source in config.sources.items()} == {"alpha": False, "beta": True}


@pytest.mark.parametrize("value", [False, 0, ""])
def test_a_source_that_is_no_mapping_is_refused(value: Any, raw: Any) -> None:
    rewrite(raw.mixture, sources={"alpha": value, "beta": {}})
    with pytest.raises(ConfigError, match="alpha"):
        raw.config()


@pytest.mark.parametrize("value", [True, 5, "on", ["weight"]])
def test_a_source_that_is_something_else_is_refused(value: Any, raw: Any) -> None:
    rewrite(raw.mixture, sources={"alpha": value})
    with pytest.raises(ConfigError, match=r"sources\.alpha: expected a mapping"):
        raw.config()


@pytest.mark.parametrize(
    ("sources", "arguments", "complaint"),
    [
        ({"alpah": {}}, [], "no recipe for source 'alpah'; did you mean alpha?"),
        ({"alpha": {}}, ["sources.betta.weight=1"], "no recipe for source 'betta'; did you mean beta?"),
        ({"zzz": {}}, [], "no recipe for source 'zzz'; known: alpha, beta"),
        ({"alpha": {"wieght": 1}}, [], "sources.alpha.wieght: unknown key in .*did you mean sources.alpha.weight?"),
        ({"alpha": {"weight": 2}}, [], "sources.alpha.weight=2.0: expected above 0 and up to 1"),
        ({"alpha": {"enabled": False}}, [], "every source is switched off"),
        ({}, [], "expected sources: by name"),
        (None, [], "expected sources: by name"),
        (["alpha"], [], "expected sources: by name"),
        (..., [], "expected sources: by name"),
    ],
    ids=str,
)
def test_a_mistake_in_the_sources_is_named(sources: Any, arguments: list[str], complaint: str, raw: Any) -> None:
    rewrite(raw.mixture, sources=sources)
    with pytest.raises(ConfigError, match=complaint):
        raw.config(*arguments)


def test_sources_given_as_a_text_are_refused(raw: Any) -> None:
    with pytest.raises(ConfigError, match="sources: expected a mapping"):
        raw.config("sources=alpha")


def test_a_recipe_s_own_mistakes_are_named_with_its_file(raw: Any) -> None:
    path = raw.recipes / "alpha" / "recipe.yaml"
    rewrite(path, license=..., sytem="S", files=[1])
    with pytest.raises(ConfigError) as caught:
        raw.config()
    message = str(caught.value)
    assert f"sources.alpha.sytem: unknown key in {path}; did you mean sources.alpha.system?" in message
    assert "sources.alpha.license: missing" in message
    assert f"sources.alpha.files=[1] in {path}" in message


def test_the_former_name_of_a_setting_is_answered_with_its_name_now(raw: Any) -> None:
    rewrite(raw.recipes / "alpha" / "recipe.yaml", license=..., licence="MIT")
    with pytest.raises(ConfigError, match=r"sources\.alpha\.licence: .*it is called sources\.alpha\.license now"):
        raw.config()


def test_recipes_stand_beside_the_folder_of_the_mixture(raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recipes_dir(raw.mixture) == raw.recipes
    monkeypatch.chdir(raw.mixture.parent)
    assert recipes_dir(Path("test.yaml")) == raw.recipes


# ------------------------------------------------------------------------------------------------ convert.py


def test_a_converter_is_the_function_of_its_folder(raw: Any) -> None:
    convert = load_converter(raw.recipes / "alpha")
    assert isinstance(convert({"turns": ["a", "b"]}), Conversation)
    other = raw.recipes / "beta" / "convert.py"
    other.write_text("def convert(row):\n    return 'other'\n")
    assert load_converter(raw.recipes / "beta")({}) == "other"
    assert isinstance(convert({"turns": ["a", "b"]}), Conversation)


@pytest.mark.parametrize(
    ("code", "complaint"), [(None, "has no convert.py"), ("x = 1\n", r"no function convert\(row\)")]
)
def test_a_recipe_without_a_converter_is_refused(code: str | None, complaint: str, raw: Any) -> None:
    path = raw.recipes / "alpha" / "convert.py"
    path.unlink()
    if code is not None:
        path.write_text(code)
    with pytest.raises(ConfigError, match=complaint) as caught:
        load_converter(path.parent)
    assert str(path.parent) in str(caught.value)


SWITCHED = "def convert(row, *, shout=False, twice=False):\n    return row['text'].upper() if shout else row['text']\n"


def test_a_converter_s_switches_are_set(raw: Any) -> None:
    path = raw.recipes / "alpha" / "convert.py"
    path.write_text(SWITCHED)
    for switches, expected in ((None, "a"), ({}, "a"), ({"shout": False}, "a"), ({"shout": True, "twice": True}, "A")):
        assert load_converter(path.parent, switches)({"text": "a"}) == expected


@pytest.mark.parametrize(
    ("code", "advice"), [(SWITCHED, "known: shout, twice"), ("def convert(row):\n    return row\n", "it has none")]
)
@pytest.mark.parametrize("name", ["shuot", "row"])
def test_a_switch_that_the_recipe_does_not_know_is_named(name: str, code: str, advice: str, raw: Any) -> None:
    path = raw.recipes / "alpha" / "convert.py"
    path.write_text(code)
    with pytest.raises(ConfigError, match=f"source alpha: no switch '{name}'; {advice}") as caught:
        load_converter(path.parent, {name: True})
    assert str(path) in str(caught.value)


def test_a_recipe_is_identified_by_the_files_that_decide_its_rows(raw: Any) -> None:
    folder = raw.recipes / "alpha"
    before = recipe_digests(folder)
    assert list(before) == ["recipe.yaml", "convert.py"]
    (folder / "README.md").write_text("read me")
    assert recipe_digests(folder) == before
    (folder / "convert.py").write_text("x = 1\n")
    after = recipe_digests(folder)
    assert after["recipe.yaml"] == before["recipe.yaml"]
    assert after["convert.py"] != before["convert.py"]


def test_a_mixture_with_no_recipes_beside_it_takes_those_that_came_with_sft(raw: Any, tmp_path: Path) -> None:
    own = tmp_path / "elsewhere" / "mixtures" / "own.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("sources: {dolly: {}}")
    assert recipes_dir(own) == RECIPES
    assert load_mixture(own, raw.settings).config.sources["dolly"].title
    assert recipes_dir(raw.mixture) == raw.recipes
