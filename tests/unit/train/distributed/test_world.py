import pytest
import torch

from sft.errors import ConfigError
from sft.train.distributed.world import World, choose_device


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, World(0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, World(3, 8, 1)),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"}, World(3, 4, 1)),
        # torchrun inside a Slurm step: the processes are torchrun's.
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, World(1, 2, 0)),
        # A batch script outside of any step has Slurm's numbers of the whole job, but is alone.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, World(0, 1, 0)),
    ],
)
def test_world_is_what_the_launcher_says(environ: dict[str, str], expected: World) -> None:
    assert World.of(environ) == expected


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("-1", "2"), ("x", "2"), ("0", "0")])
def test_place_that_cannot_be_is_refused(rank: str, size: str) -> None:
    with pytest.raises(ConfigError, match=f"RANK={rank}, WORLD_SIZE={size}"):
        World.of({"RANK": rank, "WORLD_SIZE": size})


def test_cuda_without_a_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA device"):
        choose_device("cuda")
    assert choose_device("auto") == torch.device("cpu")


@pytest.mark.parametrize(("num_devices", "local_rank", "expected"), [(1, 0, 0), (4, 2, 2), (1, 3, 0)])
def test_auto_takes_the_cuda_device_of_the_process(
    num_devices: int, local_rank: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that sees one device only is shown its own."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_devices)
    assert choose_device("auto", local_rank) == torch.device("cuda", expected)
    assert choose_device("cpu", local_rank) == torch.device("cpu")


def test_more_processes_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="PyTorch finds 2"):
        choose_device("auto", 2)
