"""Settings: YAML and key=value become a typed config, and every mistake is told with its place."""

from pathlib import Path

import pytest

from sft.config.loading import Layer, load, read_arguments, with_todays_names
from sft.config.train import TrainConfig
from sft.config.yaml_text import read_yaml
from tests.support.schemas import TRAIN, Inner, Schema, refusal


def from_arguments(*arguments: str) -> Schema:
    return load(Schema, [Layer("defaults", {"path": "p"}), read_arguments(arguments)]).config


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


# ------------------------------------------------------------------------------------------------ values

TYPED = [
    ("count=3", "count", 3),
    ("count=-3", "count", -3),
    ("count=1_000", "count", 1000),
    ("rate=3", "rate", 3.0),
    ("rate=1e-5", "rate", 1e-5),
    ("rate=2E4", "rate", 2e4),
    ("rate=.5", "rate", 0.5),
    ("flag=true", "flag", True),
    ("flag=False", "flag", False),
    ("limit=null", "limit", None),
    ("limit=None", "limit", None),
    ("limit=7", "limit", 7),
    ("label=null", "label", None),
    ("label=5", "label", "5"),
    ("mode=slow", "mode", "slow"),
    ("pair=[3,4e-1]", "pair", (3.0, 0.4)),
    ("words=[a,'b, c',\"7\"]", "words", ("a", "b, c", "7")),
    ("words=[]", "words", ()),
    ("words=alone", "words", ("alone",)),
    ("words=What's up?", "words", ("What's up?",)),
    ("path=a=b=c", "path", "a=b=c"),
    ("path==", "path", "="),
    ("path=", "path", ""),
    ("path= spaces kept ", "path", " spaces kept "),
    ("path=on", "path", "on"),
    ("path=1e-5", "path", "1e-5"),
    ("path=null", "path", "null"),
    ("path={not: yaml", "path", "{not: yaml"),
    ("path='quoted'", "path", "'quoted'"),
    ("path=${HOME}", "path", "${HOME}"),
    ("path=Grüße 你好", "path", "Grüße 你好"),
    ("inner.rate=2", "inner", Inner(rate=2.0)),
    ("inner={rate: 2, name: x}", "inner", Inner(2.0, "x")),
    ("table.one.rate=2", "table", {"one": Inner(rate=2.0)}),
    ("table={one: {rate: 2}}", "table", {"one": Inner(rate=2.0)}),
    pytest.param("table.one={rate: 2}", "table", {"one": Inner(rate=2.0)}),
]


@pytest.mark.parametrize(("argument", "name", "value"), TYPED)
def test_an_argument_is_read_as_the_type_of_its_setting(argument: str, name: str, value: object) -> None:
    found = getattr(from_arguments(argument), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("rate: 1e-5", "rate", 1e-5),
        ("rate: 3", "rate", 3.0),
        ("limit: null", "limit", None),
        ("limit:", "limit", None),
        ("label: '5'", "label", "5"),
        ('label: "a: b # c"', "label", "a: b # c"),
        ("words:\n  - a\n  - 'on'\n", "words", ("a", "on")),
        ("pair: [1, 2]", "pair", (1.0, 2.0)),
        ("label: 2024-01-01", "label", "2024-01-01"),
        ("inner: {rate: 4}", "inner", Inner(rate=4.0)),
        (r"label: \${count}", "label", "${count}"),
        ("label: >-\n  two\n  lines\n", "label", "two lines"),
    ],
)
def test_a_file_is_read_as_yaml(text: str, name: str, value: object, yaml_file: Path) -> None:
    yaml_file.write_text(f"path: p\n{text}\n")
    found = getattr(load(Schema, [read_yaml(yaml_file)]).config, name)
    assert found == value
    assert type(found) is type(value)


WRONG = [
    ("count", "x", "a whole number"),
    ("count", 2.5, "a whole number"),
    ("count", True, "a whole number"),
    ("count", None, "a whole number"),
    ("count", [1], "a whole number"),
    ("rate", "fast", "a number"),
    ("rate", False, "a number"),
    ("rate", None, "a number"),
    ("flag", 1, "true or false"),
    ("flag", "maybe", "true or false"),
    ("flag", None, "true or false"),
    ("limit", "many", "a whole number"),
    ("path", 5, "text"),
    ("path", True, "text"),
    ("path", None, "text"),
    ("path", ["p"], "text"),
    ("label", 5, "text"),
    ("mode", "quick", "one of fast, slow"),
    ("mode", None, "one of fast, slow"),
    ("mode", 1, "one of fast, slow"),
    ("pair", [1.0], "2 values"),
    ("pair", [1.0, 2.0, 3.0], "2 values"),
    ("pair", [1.0, "x"], "a number"),
    ("words", [1], "text"),
    ("inner", 5, "a mapping"),
    ("inner", None, "a mapping"),
    ("inner", [1], "a mapping"),
    ("table", 5, "a mapping"),
    ("table", {"one": 5}, "a mapping"),
]


@pytest.mark.parametrize(("name", "value", "expected"), WRONG)
def test_a_wrong_type_in_a_file_is_refused_with_what_was_expected(name: str, value: object, expected: str) -> None:
    message = refusal({"path": "p", name: value})
    assert message.startswith("1 mistake in the configuration\n")
    assert f"  - {name}" in message
    assert f"expected {expected}" in message


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("count=x", "a whole number"),
        ("count=1e3", "a whole number"),
        ("count=", "a whole number"),
        ("count=true", "a whole number"),
        ("count={", "readable as a YAML value"),
        ("rate=nan", "a number"),
        ("rate=1,5", "a number"),
        ("flag=1", "true or false"),
        ("mode=Fast", "one of fast, slow"),
        ("pair=1,2", "2 values"),
        ("words=[a", "readable as a YAML value"),
        ("inner=5", "a mapping"),
    ],
)
def test_a_wrong_type_on_the_command_line_is_refused_with_its_place(argument: str, expected: str) -> None:
    message = refusal({"path": "p"}, read_arguments([argument]))
    assert f"  - {argument.partition('=')[0]}" in message
    assert expected in message


def test_an_unreadable_mapping_on_the_command_line_is_refused() -> None:
    assert "inner" in refusal({"path": "p"}, read_arguments(["inner={"]))


def test_a_number_beyond_floats_is_refused() -> None:
    assert "rate" in refusal({"path": "p"}, read_arguments([f"rate=1{'0' * 400}"]))


PATHS = [("~/runs/x", str(Path.home() / "runs/x")), ("~", str(Path.home())), ("runs/~x", "runs/~x"), ("$x", "$x")]


@pytest.mark.parametrize(("written", "path"), PATHS)
def test_a_path_may_begin_with_the_home_folder_and_stands_for_itself_otherwise(written: str, path: str) -> None:
    for layer in (Layer("file", {"out": written}), read_arguments([f"out={written}"])):
        assert load(TrainConfig, [Layer("file", TRAIN), layer]).config.out == path


@pytest.mark.parametrize("written", ["${HOME}/x", "runs/${x}", "~someone/x"])
@pytest.mark.parametrize("name", ["out", "shards", "model.weights"])
def test_a_path_that_would_make_a_folder_of_that_name_is_refused(name: str, written: str) -> None:
    message = refusal(TRAIN, read_arguments([f"{name}={written}"]), schema=TrainConfig)
    assert f"  - {name}={written!r} in command line: expected" in message


# ------------------------------------------------------------------------------------------------ layers


def test_the_command_line_wins_over_the_file_and_the_file_over_the_recipe(yaml_file: Path) -> None:
    yaml_file.write_text("path: file\ncount: 2\ninner: {rate: 2}\n")
    recipe = Layer("recipe.yaml", {"path": "recipe", "count": 1, "limit": 1, "inner": {"rate": 1, "name": "recipe"}})
    loaded = load(Schema, [recipe, read_yaml(yaml_file), read_arguments(["count=3", "count=4"])])
    assert loaded.config == Schema(path="file", count=4, limit=1, inner=Inner(2.0, "recipe"))
    assert loaded.origins == {
        "path": str(yaml_file),
        "count": "command line",
        "limit": "recipe.yaml",
        "inner.rate": str(yaml_file),
        "inner.name": "recipe.yaml",
    }


def test_a_list_replaces_a_list() -> None:
    loaded = load(Schema, [Layer("a", {"path": "p", "words": ["x", "y"]}), read_arguments(["words=[z]"])])
    assert loaded.config.words == ("z",)


def test_loading_changes_no_layer() -> None:
    first = {"path": "p", "inner": {"rate": 1}}
    load(Schema, [Layer("a", first), Layer("b", {"inner": {"rate": 2}, "table": {"t": {}}})])
    assert first == {"path": "p", "inner": {"rate": 1}}


def test_what_an_earlier_version_has_written_is_read_by_today_s_names() -> None:
    written = Layer(
        "run/config.yaml", {**TRAIN, "save_every_steps": 7, "keep_best": 0, "fp16_scale_window": 3, "seed": 5}
    )
    config = load(TrainConfig, [with_todays_names(TrainConfig, written)]).config
    assert (config.checkpoint.every_steps, config.checkpoint.keep_best, config.fp16.scale_window) == (7, 0, 3)
    assert config.seed == 5


@pytest.mark.parametrize("is_first", [True, False])
def test_a_file_with_names_of_both_versions_loses_none(is_first: bool) -> None:
    old, new = {"save_every_steps": 7}, {"checkpoint": {"keep_last": 4, "keep_best": 0}}
    written = Layer("run/config.yaml", {**TRAIN, **(old | new if is_first else new | old), "keep_best": 3})
    config = load(TrainConfig, [with_todays_names(TrainConfig, written)]).config
    assert (config.checkpoint.every_steps, config.checkpoint.keep_last, config.checkpoint.keep_best) == (7, 4, 0)


def test_a_group_that_is_no_group_is_refused_beside_earlier_names_too() -> None:
    written = Layer("run/config.yaml", {**TRAIN, "checkpoint": 5, "save_every_steps": 7})
    assert "checkpoint: expected a mapping, got 5" in refusal(
        with_todays_names(TrainConfig, written), schema=TrainConfig
    )
