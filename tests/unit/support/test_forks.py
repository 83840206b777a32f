"""Forks of test processes may use PyTorch in several threads."""

import os
from typing import Any

import pytest
import torch

from tests.support import forks


def test_a_fork_renews_the_thread_pool_before_it_can_have_a_second_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    original = torch.set_num_threads

    def noted(number: int) -> Any:
        os.write(writing, f"renewed for {number}".encode())
        return original(number)

    monkeypatch.setattr(torch, "set_num_threads", noted)
    pid = os.fork()
    if pid == 0:
        os.write(writing, b", then the test's own code")
        os._exit(0)
    os.close(writing)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with os.fdopen(reading) as stream:
        assert stream.read() == f"renewed for {torch.get_num_threads()}, then the test's own code"


def test_a_fork_without_pytorch_has_nothing_to_renew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks.sys, "modules", {})
    forks.renew_thread_pool()
    assert "torch" not in forks.sys.modules
