"""Errors tell a user what to do, and a script how it ended."""

import json
import pickle
import re
from pathlib import Path

import pytest

import sft.errors
from sft.errors import (
    ConfigError,
    DataError,
    NumericsError,
    PeerError,
    SftError,
    StopRequested,
    StorageError,
    from_json,
    listed,
)

EXIT_CODES = {
    SftError: 1,
    DataError: 65,
    NumericsError: 70,
    PeerError: 71,
    StorageError: 74,
    StopRequested: 75,
    ConfigError: 78,
}
MESSAGES = [
    (SftError("went wrong"), "went wrong"),
    (SftError("went wrong", on="out/x"), "out/x: went wrong"),
    (SftError("went wrong", on=Path("out/x")), "out/x: went wrong"),
    (SftError("went wrong", hint="try again"), "went wrong\n  → try again"),
    (SftError("went wrong", on="", hint=""), ": went wrong"),
    (SftError("went wrong", on="out/x", hint="try again"), "out/x: went wrong\n  → try again"),
]


@pytest.mark.parametrize(("error", "message"), MESSAGES)
def test_a_message_says_where_what_and_what_next(error: SftError, message: str) -> None:
    assert str(error) == message


@pytest.mark.parametrize(("kind", "code"), EXIT_CODES.items())
def test_every_branch_has_its_own_exit_code(kind: type[SftError], code: int) -> None:
    assert kind.exit_code == code
    assert issubclass(kind, SftError)


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    drawn = dict(re.findall(r"(\w+) +(\d+) ", sft.errors.__doc__ or ""))
    mine = ((name, kind) for name, kind in vars(sft.errors).items() if isinstance(kind, type))
    defined = {name: kind for name, kind in mine if kind.__module__ == sft.errors.__name__}
    assert {name: str(kind.exit_code) for name, kind in defined.items()} == drawn


@pytest.mark.parametrize("kind", EXIT_CODES)
def test_an_error_comes_home_whole_from_a_worker_process(kind: type[SftError]) -> None:
    sent = kind("went wrong", on=Path("out/x"), hint="try again")
    received = pickle.loads(pickle.dumps(sent))
    assert type(received) is kind
    assert (received.what, received.on, received.hint) == (sent.what, sent.on, sent.hint)
    assert str(received) == str(sent)


@pytest.mark.parametrize("kind", EXIT_CODES)
@pytest.mark.parametrize("on", [None, "out/x", Path("out/x")])
def test_an_error_that_another_process_told_keeps_its_exit_code_and_says_whose_it_is(
    kind: type[SftError], on: str | Path | None
) -> None:
    sent = kind("went wrong", on=on, hint="try again")
    received = from_json(json.loads(json.dumps(sent.to_json())), "process 3")
    assert type(received) is kind
    expected = "process 3: went wrong\n  → try again"
    assert str(received) == (expected if on is None else f"out/x: {expected}")


def test_an_error_of_an_unknown_kind_is_a_bug_of_ours() -> None:
    received = from_json({"kind": "OddError", "what": "went wrong", "on": None, "hint": None}, "process 3")
    assert type(received) is SftError


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (None, "\n  - a\n  - b\n  - c"),
        (3, "\n  - a\n  - b\n  - c"),
        (2, "\n  - a\n  - b\n  - and 1 more"),
        (0, "\n  - and 3 more"),
    ],
)
def test_mistakes_are_listed_up_to_a_limit(limit: int | None, expected: str) -> None:
    assert listed(["a", "b", "c"], limit) == expected


def test_no_mistake_is_no_list() -> None:
    assert listed([], 5) == ""
