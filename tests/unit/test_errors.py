"""Errors tell a user what to do, and a script how it ended."""

import pickle
import re
from pathlib import Path

import pytest

import sft.errors
from sft.errors import ConfigError, DataError, NumericsError, PeerError, SftError, StopRequested, StorageError

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
    defined = {name: kind for name, kind in vars(sft.errors).items() if isinstance(kind, type)}
    del defined["Path"]
    assert {name: str(kind.exit_code) for name, kind in defined.items()} == drawn


@pytest.mark.parametrize("kind", EXIT_CODES)
def test_an_error_comes_home_whole_from_a_worker_process(kind: type[SftError]) -> None:
    sent = kind("went wrong", on=Path("out/x"), hint="try again")
    received = pickle.loads(pickle.dumps(sent))
    assert type(received) is kind
    assert (received.what, received.on, received.hint) == (sent.what, sent.on, sent.hint)
    assert str(received) == str(sent)
