"""No key or password gets into a message, a file or a setting."""

import string
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.cli.main import main
from sft.config.loading import load, read_arguments
from sft.config.train import TrainConfig
from sft.config.yaml_text import read_yaml
from sft.errors import ConfigError
from sft.redact import HIDDEN, environment_secrets, redact, refuse_secrets

ROOT = Path(__file__).parents[2]
CANARY = "canary0123456789canary0123456789canary01"
# Put together here, so that no scanner takes this file for a leak.
SHAPED = {
    "Hugging Face": "hf" + "_" + "AbCdEfGhIj" * 3,
    "wandb": "wandb" + "_v1_" + "a1B2c3D4e5" * 6,
    "wandb local": "local" + "-" + "0123456789" * 4,
    "GitHub": "ghp" + "_" + "AbCdEfGhIj" * 3,
    "GitLab": "glpat" + "-" + "AbCdEfGhIj" * 2,
    "OpenAI": "sk" + "-" + "AbCdEfGhIj" * 4,
    "Anthropic": "sk" + "-ant-" + "AbCd-EfGhIj" * 4,
    "AWS": "AKIA" + "ABCDEFGHIJKLMNOP",
    "Slack": "xoxb" + "-" + "1234567890-AbCdEf",
    "JWT": "eyJ" + "hbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0In0." + "AbCdEfGhIjKlMn",
}
HARMLESS = [
    "runs/sk-learn-of-a-rather-long-name-0123456789",
    "step 12, packs 1, 2: loss 2.5",
    "revision: 0123456789abcdef0123456789abcdef01234567",
    "https://example.org/a:b/c@d",
    "end_token=false, tokenizer=/models/stablelm-base-alpha-3b/tokenizer.json, max_new_tokens=1234567890123456789",
    "keyboard: a-word-that-is-very-long-indeed",
    "token 12 of pack 3",
]


@pytest.mark.parametrize("secret", SHAPED.values(), ids=SHAPED)
def test_what_has_the_shape_of_a_key_is_hidden(secret: str) -> None:
    assert redact(f"cannot log in with {secret}: refused") == f"cannot log in with {HIDDEN}: refused"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"get https://me:{CANARY}@example.org/x", f"get https://{HIDDEN}@example.org/x"),
        (f"unrecognized arguments: --api-key={CANARY}", f"unrecognized arguments: --api-key={HIDDEN}"),
        (f'{{"apiKey": "x", "password": "{CANARY}"}}', f'{{"apiKey": "x", "password": "{HIDDEN}"}}'),
        (f"Authorization: Basic {CANARY}", f"Authorization: Basic {HIDDEN}"),
        (f"sent Bearer {CANARY}, refused", f"sent Bearer {HIDDEN}, refused"),
        (f"WANDB_API_KEY={CANARY} sft train", f"WANDB_API_KEY={HIDDEN} sft train"),
    ],
)
def test_what_is_said_to_be_a_key_is_hidden(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


@given(st.text(st.sampled_from(string.printable), max_size=60), st.text(st.sampled_from(string.printable), max_size=60))
def test_a_secret_of_the_environment_is_hidden_wherever_it_stands(before: str, after: str) -> None:
    secrets = environment_secrets({"MY_API_KEY": CANARY, "HOME": "/home/me"})
    assert CANARY not in redact(before + CANARY + after, secrets)


def test_only_variables_with_the_name_of_a_secret_count() -> None:
    environ = {
        "WANDB_API_KEY": "a" * 40,
        "HF_TOKEN": "b" * 37,
        "DB_PASSWORD": "c" * 8,
        "TOKENIZERS_PARALLELISM": "false-or-so",
        "KEYBOARD_LAYOUT": "german-nodeadkeys",
        "USE_TOKEN": "true",
    }
    assert environment_secrets(environ) == ("a" * 40, "b" * 37, "c" * 8)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"wandb": {"api_key": CANARY}}, "wandb.api_key"),
        ({"HF_TOKEN": CANARY}, "HF_TOKEN"),
        ({"out": CANARY}, "out"),
        ({"sources": {"a": {"files": ["x", f"https://me:{CANARY}@example.org"]}}}, "sources.a.files"),
        ({"sources": [{"password": "hunter2-hunter2"}]}, "sources.password"),
        *(({"shards": secret}, "shards") for secret in SHAPED.values()),
    ],
)
def test_a_setting_that_holds_a_secret_is_refused_without_showing_it(values: dict[str, object], name: str) -> None:
    with pytest.raises(ConfigError, match="looks like a key or password") as refusal:
        refuse_secrets([("config.yaml", values)], {"SOME_KEY": CANARY})
    assert f": {name} in config.yaml" in refusal.value.message()
    assert refusal.value.exit_code == 78
    assert not any(secret in refusal.value.message() for secret in (CANARY, "hunter2", *SHAPED.values()))


def test_ordinary_settings_are_not_taken_for_secrets() -> None:
    values = {"end_token": "false", "tokenizer": "/models/base/tokenizer.json", "system": "Say your token: a word."}
    revision = {"revision": "0123456789abcdef0123456789abcdef01234567"}
    layers = [("file", {**values, "sources": {"dolly": revision}})]
    refuse_secrets(layers, {})
    with pytest.raises(ConfigError, match=r"sources\.dolly\.revision in file"):  # the same text, if it is a secret here
        refuse_secrets(layers, {"SOME_TOKEN": revision["revision"]})


def test_every_config_and_recipe_of_ours_is_free_of_them() -> None:
    files = [*(ROOT / "configs").glob("*.yaml"), *(ROOT / "data_recipes").rglob("*.yaml")]
    assert len(files) > 8
    refuse_secrets([(layer.origin, layer.values) for layer in map(read_yaml, files)], {})


@pytest.mark.parametrize("setting", ["wandb.api_key=", "out=", "wandb.project=", "--api-key="])
def test_an_argument_with_a_key_ends_the_command_and_is_not_echoed(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    config = tmp_path / "config.yaml"
    config.write_text("shards: s\nout: o\nmodel: {weights: base}\n")
    assert main(["train", str(config), f"{setting}{CANARY}", "--print-config"]) == 78
    assert CANARY not in "".join(capsys.readouterr())


def test_a_key_drawn_into_yaml_from_the_environment_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    config = tmp_path / "config.yaml"
    config.write_text("shards: s\nout: ${oc.env:WANDB_API_KEY}\nmodel: {weights: base}\n")
    with pytest.raises(ConfigError, match="would be filled in, which no setting is") as refusal:
        load(TrainConfig, [read_yaml(config), read_arguments([])])
    assert CANARY not in refusal.value.message()


FAILS = """
import logging, sys
from sft.cli import demo, main as cli
def fail(_):
    logging.getLogger("sft").warning("refused %s", sys.argv[1])
    print("said", sys.argv[1])
    raise {error}
demo.run = fail
sys.exit(cli.main(["demo"]))
"""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("ValueError('no such login: ' + sys.argv[1])", 1),
        ("cli.ConfigError('no such login: ' + sys.argv[1])", 78),
        ("OSError('outer') from ValueError(sys.argv[1])", 1),
    ],
)
def test_what_fails_with_a_key_in_its_text_shows_all_but_the_key(
    error: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", CANARY)
    command = [sys.executable, "-c", FAILS.format(error=error), CANARY]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert CANARY not in done.stdout + done.stderr
    assert f"refused {HIDDEN}" in done.stderr
    assert f"said {HIDDEN}" in done.stdout
    assert (f"no such login: {HIDDEN}" in done.stderr) or f"ValueError: {HIDDEN}" in done.stderr
