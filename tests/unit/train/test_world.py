import pytest
import torch

from sft.errors import ConfigError
from sft.train.world import World, choose_device


def test_world_is_what_the_launcher_says() -> None:
    assert World.of({"RANK": "3", "WORLD_SIZE": "8"}) == World(3, 8)
    assert World.of({}) == World(0, 1)


def test_cuda_without_a_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA device"):
        choose_device("cuda")
    assert choose_device("auto") == torch.device("cpu")


def test_auto_takes_cuda_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cpu") == torch.device("cpu")
