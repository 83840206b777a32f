"""Keeps keys and passwords out of printed, logged and written text: they belong in the environment only."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sft.errors import ConfigError

HIDDEN = "[hidden]"
MIN_SECRET_CHARS = 8
"""Shorter values of secret-like names are switches, not secrets."""

_NAME_WORDS = {"key", "apikey", "keys", "token", "secret", "password", "passwd", "passphrase"}
_SHAPES = re.compile(
    r"\b(?:"
    r"hf_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|wandb_v\d+_\w{20,}|local-[0-9a-f]{40}"  # Weights & Biases; its plain 40 hex digits look like a commit
    r"|gh[oprsu]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}"
    r"|sk-[A-Za-z0-9]{32,}|sk-(?:ant|proj)-[\w-]{20,}"
    r"|xox[abprs]-[\w-]{10,}"
    r"|A(?:KIA|SIA)[0-9A-Z]{16}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,}"  # a signed token
    r")|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_LOGIN = re.compile(r"(?<=://)[^\s/@:]*:[^\s/@]+(?=@)")
"""User and password in an address."""
_SAID = re.compile(
    r"(?i)(?P<name>\b(?:[\w.-]*[_.-])?(?:key|apikey|token|secret|password|passwd)[\"']?\s*[=:]\s*[\"']?"
    r"|\bbearer\s+|\bauthorization:\s*\w+\s+)(?P<value>[^\s\"',;]{16,})"
)
"""A value after a name that marks it as a secret."""


def environment_secrets(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The values of variables such as WANDB_API_KEY, the longest first."""
    found = {value for name, value in environ.items() if _is_secret_name(name) and len(value) >= MIN_SECRET_CHARS}
    return tuple(sorted(found, key=lambda value: (-len(value), value)))


def redact(text: str, secrets: Sequence[str] = ()) -> str:
    """The text with these secrets, and everything that looks like a secret, hidden."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    text = _LOGIN.sub(HIDDEN, _SHAPES.sub(HIDDEN, text))
    return _SAID.sub(lambda said: f"{said['name']}{HIDDEN}", text)


def error_text(error: Exception, environ: Mapping[str, str]) -> str:
    """An error's text, or its type's name if it has none, without secrets."""
    return redact(str(error) or type(error).__name__, environment_secrets(environ))


def refuse_secrets(layers: Iterable[tuple[str, Mapping[str, Any]]], environ: Mapping[str, str] = os.environ) -> None:
    """Refuse keys and passwords in the settings, which are saved with every checkpoint and sent to trackers.

    Raises: ConfigError naming the place of each, without its value.
    """
    secrets = environment_secrets(environ)
    found = [f"{name} in {origin}" for origin, values in layers for name in _secret_settings(values, secrets)]
    if found:
        raise ConfigError(
            f"looks like a key or password: {', '.join(found)}",
            hint="take it out: keys are read from the environment, such as WANDB_API_KEY or HF_TOKEN, "
            "or from the file that the tool's own login writes",
        )


def _secret_settings(value: Any, secrets: Sequence[str], name: str = "", key: str = "") -> Iterator[str]:
    """The dotted names of all settings whose name or value looks like a secret."""
    if isinstance(value, Mapping):
        for inner, item in value.items():
            shown = redact(str(inner), secrets)
            yield from _secret_settings(item, secrets, f"{name}.{shown}" if name else shown, str(inner))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _secret_settings(item, secrets, name, key)
    elif redact(key, secrets) != key or (isinstance(value, str) and _is_secret(key, value, secrets)):
        yield name


def _is_secret(key: str, text: str, secrets: Sequence[str]) -> bool:
    is_one_word = len(text) >= MIN_SECRET_CHARS and not re.search(r"\s", text)
    return text in secrets or redact(text) != text or (_is_secret_name(key) and is_one_word)


def _is_secret_name(name: str) -> bool:
    return not _NAME_WORDS.isdisjoint(re.split(r"[\W_]+", name.lower()))
