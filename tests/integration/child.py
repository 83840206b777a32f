"""Runs that die, for test_resume.py: each argument is CONFIG:EVENT:STEP, run in a fork of its own.

EVENT `kill` ends the process by SIGKILL at the end of the step; `save` by SIGKILL when it has half written the
checkpoint of that step; any other is the name of a signal that the process gets between two micro-batches.
Prints the forks' exit codes, negative for a signal.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the optimizer loads it at its first step; once here is faster than once in every fork

from sft.config.loading import load
from sft.config.train import TrainConfig
from sft.config.yaml_text import read_yaml
from sft.errors import SftError
from sft.train.checkpoint import async_writer
from sft.train.engine.native import TorchEngine
from sft.train.loop import train
from tests.support import forks as forks


def main() -> None:
    torch.set_num_threads(1)
    forks = [fork(argument) for argument in sys.argv[1:]]
    for pid in forks:
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def fork(argument: str) -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(die(*argument.split(":")))
    return pid


def die(path: str, event: str, step: str) -> int:
    if event == "save":
        _kill_in_save(int(step))
    else:
        method = "step" if event == "kill" else "forward_backward"
        _signal_self(method, signal.SIGKILL if event == "kill" else signal.Signals[event], int(step))
    try:
        train(load(TrainConfig, [read_yaml(Path(path))]).config)
    except SftError as error:
        print(error.message(), file=sys.stderr)
        return error.exit_code
    return 0


def _kill_in_save(step: int) -> None:
    """Die when the tensors of that step's checkpoint are written, and nothing else."""
    original = async_writer.write_slices

    def write_slices(slices: Any, shape: Any, folder: Path, *place: int) -> Any:
        original(slices, shape, folder, *place)
        if folder.name.endswith(f"{step:08d}"):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(slices, shape, folder, *place)

    async_writer.write_slices = write_slices  # type: ignore[assignment]


def _signal_self(method: str, number: int, step: int) -> None:
    """Let the engine send its own process a signal, once, at the end of one of its methods."""
    steps_done, original, original_step = 0, getattr(TorchEngine, method), TorchEngine.step

    def signalling(engine: TorchEngine, *arguments: Any, **options: Any) -> Any:
        result = original(engine, *arguments, **options)
        if steps_done == step:
            os.kill(os.getpid(), number)
        return result

    def counting(engine: TorchEngine, lr: float) -> Any:
        nonlocal steps_done
        steps_done += 1
        return (signalling if method == "step" else original_step)(engine, lr)

    setattr(TorchEngine, method, signalling)
    TorchEngine.step = counting  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
