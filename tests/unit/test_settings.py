"""Settings: YAML and key=value become a typed config, and every mistake is told with its place."""

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sft.config import BuildConfig, ChatConfig, EvalConfig, ExportConfig, InitConfig, TrainConfig
from sft.errors import ConfigError
from sft.settings import Layer, as_values, as_yaml, describe, load, read_arguments, read_yaml

TRAIN = {"shards": "s", "out": "o", "model": {"weights": "base"}}


@dataclass(frozen=True)
class Inner:
    """A nested schema."""

    rate: float = 0.5
    name: str = "inner"


@dataclass(frozen=True)
class Schema:
    """One field of every kind that the real schema has."""

    path: str
    count: int = 1
    rate: float = 1.0
    flag: bool = False
    limit: int | None = None
    label: str | None = None
    mode: Literal["fast", "slow"] = "fast"
    pair: tuple[float, float] = (1.0, 2.0)
    words: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)
    table: dict[str, Inner] = field(default_factory=dict)


def from_arguments(*arguments: str) -> Schema:
    return load(Schema, [Layer("defaults", {"path": "p"}), read_arguments(arguments)]).config


def refusal(*layers: Mapping[str, Any] | Layer, schema: type = Schema) -> str:
    """The message with which the layers are refused."""
    named = [layer if isinstance(layer, Layer) else Layer(f"file{n}", layer) for n, layer in enumerate(layers)]
    with pytest.raises(ConfigError) as caught:
        load(schema, named)
    return str(caught.value)


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
        ("count: 4\nlabel: run-${count}", "label", "run-4"),
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


# ------------------------------------------------------------------------------------------------ mistakes


def test_an_unknown_key_is_told_with_its_file_and_the_nearest_name(yaml_file: Path) -> None:
    yaml_file.write_text("path: p\ncuont: 3\ninner: {rat: 1}\ntable: {one: {naem: x}}\n")
    message = refusal(read_yaml(yaml_file), read_arguments(["labl=x", "inner.nmae=x"]))
    assert message.startswith("5 mistakes in the configuration\n")
    for line in (
        f"cuont: unknown key in {yaml_file}; did you mean count?",
        "labl: unknown key in command line; did you mean label?",
        f"inner.rat: unknown key in {yaml_file}; did you mean inner.rate?",
        "inner.nmae: unknown key in command line; did you mean inner.name?",
        f"table.one.naem: unknown key in {yaml_file}; did you mean table.one.name?",
    ):
        assert f"\n  - {line}" in message


def test_an_unknown_key_like_no_other_is_answered_with_all_names() -> None:
    assert "inner.zzz: unknown key in file0; known here: rate, name" in refusal({"path": "p", "inner": {"zzz": 1}})


@pytest.mark.parametrize("key", [1, None, True, 2.5, "inner.rate", ""], ids=repr)
def test_a_key_that_is_no_name_is_unknown(key: Any) -> None:
    assert f"  - {key}: unknown key" in refusal({"path": "p", key: 1})


def test_a_missing_value_is_named() -> None:
    assert "  - path: missing, please set it" in refusal({})
    message = refusal({}, schema=TrainConfig)
    assert [line for line in message.splitlines()[1:]] == [
        f"  - {name}: missing, please set it" for name in ("shards", "model.weights", "out")
    ]


def test_all_mistakes_are_told_at_once() -> None:
    wrong = {"shards": 1, "epochs": "two", "optimizer": {"lr": None, "beta": 1}, "wandb": {"mode": "on"}, "modle": {}}
    message = refusal(wrong, read_arguments(["precision=fp8", "batch_packs=2.5"]), schema=TrainConfig)
    named = [line.split("=")[0].split(":")[0].removeprefix("  - ") for line in message.splitlines()[1:]]
    assert sorted(named) == sorted(
        ["shards", "epochs", "optimizer.lr", "optimizer.beta", "wandb.mode", "modle", "precision", "batch_packs"]
        + ["model.weights", "out"]
    )
    assert message.startswith("10 mistakes")


def test_contradictions_of_different_parts_are_told_at_once() -> None:
    message = refusal({**TRAIN, "optimizer": {"lr": -1}, "model": {"weights": "scratch"}}, schema=TrainConfig)
    assert "optimizer.lr=-1.0: expected above 0" in message
    assert "model.weights=scratch: needs" in message


@pytest.mark.parametrize("other", [{"epochz": 1}, {"precision": "fp8"}, {"optimizer": {"lr": -1}}], ids=str)
def test_a_range_and_another_mistake_are_told_at_once(other: dict[str, Any]) -> None:
    message = refusal({**TRAIN, "keep_checkpoints": 0, **other}, schema=TrainConfig)
    assert "keep_checkpoints" in message
    assert next(iter(other)) in message


TYPO_KEYS = [
    *((field.name, TrainConfig, "") for field in fields(TrainConfig)),
    *((field.name, InitConfig, "model.") for field in fields(InitConfig)),
]


def typos(name: str) -> set[str]:
    """Every way to leave out, double, swap or mistype one letter."""
    cuts = [(name[:place], name[place:]) for place in range(len(name) + 1)]
    letters = string.ascii_lowercase + "_"
    left_out = {a + b[1:] for a, b in cuts if b}
    swapped = {a + b[1] + b[0] + b[2:] for a, b in cuts if len(b) > 1}
    mistyped = {a + letter + b[1:] for a, b in cuts if b for letter in letters}
    added = {a + letter + b for a, b in cuts for letter in letters}
    return (left_out | swapped | mistyped | added) - {name, ""}


@pytest.mark.parametrize(
    ("name", "schema", "prefix"), TYPO_KEYS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_key_misspelt_by_one_letter_is_refused_with_the_right_name(name: str, schema: type, prefix: str) -> None:
    known = {field.name for field in fields(schema)}
    wrong = sorted(typo for typo in typos(name) if typo not in known)
    required = {"weights": "base"} if schema is InitConfig else TRAIN
    message = refusal({**required, **dict.fromkeys(wrong, 1)}, schema=schema)
    for typo in wrong:
        assert f"  - {typo}: unknown key in file0; did you mean {name}?" in message


@pytest.mark.parametrize("argument", ["", "=", "=3", "epochs", "--epochs", "epochs 3"])
def test_an_argument_that_is_no_setting_is_refused(argument: str) -> None:
    with pytest.raises(ConfigError, match=r"expected key=value\n  → for example"):
        read_arguments([argument])


def test_a_setting_cannot_hold_a_value_and_settings() -> None:
    with pytest.raises(ConfigError, match="inner was given a value before"):
        read_arguments(["inner=1", "inner.rate=2"])


def test_a_setting_cannot_hold_settings_and_a_value() -> None:
    with pytest.raises(ConfigError, match="inner"):
        read_arguments(["inner.rate=2", "inner={name: x}"])


# ------------------------------------------------------------------------------------------------ files

BAD_FILES = [
    ("count: 1\ncount: 2\n", "duplicate key"),
    ("inner: {rate: 1, rate: 2}\n", "duplicate key"),
    ("- 1\n- 2\n", "expected a mapping"),
    ("a: [1\n", "not readable as YAML"),
    ("a: 1\n---\nb: 2\n", "not readable as YAML"),
    ("a: !!python/object/apply:os.getcwd []\n", "not readable as YAML"),
    ("a: ${nowhere}\n", "not readable as YAML"),
    ("a: ${oc.env:NO_SUCH_VARIABLE}\n", "not readable as YAML"),
    ("a: ${a}\n", "not readable as YAML"),
    ("a: \x00\n", "not readable as YAML"),
    (b"\xff\xfe\x00", "not readable as YAML"),
]


@pytest.mark.parametrize(("content", "complaint"), BAD_FILES, ids=lambda value: repr(value)[:30])
def test_a_file_that_is_no_mapping_of_settings_is_refused_by_name(
    content: str | bytes, complaint: str, yaml_file: Path
) -> None:
    yaml_file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=complaint) as caught:
        read_yaml(yaml_file)
    assert str(yaml_file) in str(caught.value)


@pytest.mark.parametrize("content", ["5\n", "true\n", "2.5\n"])
def test_a_file_with_a_single_value_is_refused_by_name(content: str, yaml_file: Path) -> None:
    yaml_file.write_text(content)
    with pytest.raises(ConfigError, match="expected a mapping"):
        read_yaml(yaml_file)


@pytest.mark.parametrize("place", ["missing.yaml", "."])
def test_a_missing_file_is_named(place: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such config file") as caught:
        read_yaml(tmp_path / place)
    assert str(tmp_path / place) in str(caught.value)


def test_an_empty_file_changes_nothing(yaml_file: Path) -> None:
    yaml_file.write_text("# nothing yet\n")
    assert read_yaml(yaml_file) == Layer(str(yaml_file), {})


def test_a_value_marked_as_missing_is_missing(yaml_file: Path) -> None:
    yaml_file.write_text("path: ???\n")
    assert "missing" in refusal(read_yaml(yaml_file))


# ------------------------------------------------------------------------------------------------ shown and kept


def test_the_shown_config_says_where_each_value_came_from(yaml_file: Path) -> None:
    yaml_file.write_text("path: p\ninner: {rate: 2}\nwords: [a, b]\n")
    shown = describe(load(Schema, [read_yaml(yaml_file), read_arguments(["table.one.name=x", "limit=null"])]))
    assert shown.splitlines() == [
        f"path: p  # {yaml_file}",
        "count: 1  # default",
        "rate: 1.0  # default",
        "flag: false  # default",
        "limit: null  # command line",
        "label: null  # default",
        "mode: fast  # default",
        "pair:  # default",
        "- 1.0",
        "- 2.0",
        f"words:  # {yaml_file}",
        "- a",
        "- b",
        "inner:",
        f"  rate: 2.0  # {yaml_file}",
        "  name: inner  # default",
        "table:",
        "  one:",
        "    rate: 0.5  # default",
        "    name: x  # command line",
    ]


def test_a_mapping_given_whole_on_the_command_line_is_no_default() -> None:
    shown = describe(load(Schema, [Layer("a", {"path": "p"}), read_arguments(["inner={rate: 2}"])]))
    assert "  rate: 2.0  # command line" in shown


def test_the_shown_config_is_yaml_that_says_the_same() -> None:
    loaded = load(TrainConfig, [Layer("a", TRAIN)])
    assert yaml.safe_load(describe(loaded)) == yaml.safe_load(as_yaml(loaded.config))


@pytest.mark.parametrize("label", ["many words " * 20 + "end", "two\nlines"], ids=["long", "lines"])
def test_the_shown_config_is_yaml_even_with_long_texts(label: str) -> None:
    loaded = load(Schema, [Layer("a", {"path": "p", "label": label})])
    assert yaml.safe_load(describe(loaded))["label"] == label


def reloaded(schema: type, text: str, path: Path) -> Any:
    path.write_text(text, encoding="utf-8")
    return load(schema, [read_yaml(path)]).config


@pytest.mark.parametrize("schema", [TrainConfig, EvalConfig, ChatConfig, ExportConfig])
def test_a_config_written_as_yaml_reads_back_equal(schema: type, yaml_file: Path) -> None:
    config = load(schema, [Layer("a", TRAIN if schema is TrainConfig else {})]).config
    assert reloaded(schema, as_yaml(config), yaml_file) == config


PRINTABLE = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=30).filter(lambda text: "${" not in text)
WORDS = st.sampled_from(["null", "on", "1e-5", "1_000", "0x10", "~", "- a", "a: b", "# x", "'", '"', "{", "2024-01-01"])
CONFIGS = st.builds(
    Schema,
    path=PRINTABLE | WORDS,
    count=st.integers(-(10**12), 10**12),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    flag=st.booleans(),
    limit=st.none() | st.integers(0, 9),
    label=st.none() | PRINTABLE | WORDS,
    words=st.lists(PRINTABLE | WORDS, max_size=3).map(tuple),
    inner=st.builds(Inner, rate=st.floats(0, 1), name=WORDS),
    table=st.dictionaries(st.sampled_from(["one", "two"]), st.builds(Inner)),
)


@given(config=CONFIGS)
def test_any_config_written_as_yaml_reads_back_equal(config: Schema, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "generated.yaml"
    assert reloaded(Schema, as_yaml(config), path) == config


@pytest.mark.parametrize("text", ["${HOME}", "${", "What does ${x} mean?"])
def test_a_text_with_a_dollar_sign_reads_back_equal(text: str, yaml_file: Path) -> None:
    config = Schema(path="p", words=(text,))
    assert reloaded(Schema, as_yaml(config), yaml_file) == config


def test_the_values_are_plain_json() -> None:
    config = load(TrainConfig, [Layer("a", TRAIN)]).config
    values = as_values(config)
    assert json.loads(json.dumps(values)) == values
    assert values["optimizer"]["betas"] == [0.9, 0.99]


def test_a_build_config_reads_back_equal(yaml_file: Path) -> None:
    source = {
        "title": "T",
        "hub_id": "a/b",
        "files": ["*.json"],
        "licence": "CC0-1.0",
        "citation": "c",
        "system": "s\n",
    }
    values = {"sources": {"one": source, "two": {**source, "weight": 0.5}}, "sources_dir": "r", "tokenizer": "t"}
    config = load(BuildConfig, [Layer("a", {**values, "out": "o"})]).config
    assert reloaded(BuildConfig, as_yaml(config), yaml_file) == config
