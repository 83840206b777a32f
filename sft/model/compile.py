"""torch.compile for everything in a block but attention: fewer, larger kernels for norms, rotation, GELU and sums.

Attention stays outside, because document lengths are Python integers, for each of which the compiler would specialize.
"""

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch

from sft.errors import ConfigError
from sft.model.base import LanguageModel

CXX = "CXX"


def compile_blocks(model: LanguageModel, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the parts of the model's blocks when they first run, once for all blocks and numbers of tokens.

    Raises: ConfigError if there is no C++ compiler for the code that torch.compile generates.
    """
    compiler = os.environ.get(CXX, "g++")
    if backend == "inductor" and not shutil.which(compiler):
        raise ConfigError(
            f"compile=true: there is no C++ compiler {compiler}",
            hint=f"install one, name another in {CXX}, or set compile=false",
        )
    for owner, name in model.compiled_parts():
        # Set on the instances: modules, parameters and their names are unchanged.
        setattr(owner, name, _compiled(getattr(owner, name), backend))


def _compiled(part: Callable[..., Any], backend: str | Callable[..., Any]) -> Callable[..., Any]:
    fast = torch.compile(part, dynamic=True, fullgraph=True, backend=backend)

    def run(x: torch.Tensor, *rest: Any) -> Any:
        # The compiler would specialize for a single token, the batch of a process that has no pack left in a step.
        return part(x, *rest) if x.shape[0] == 1 else fast(x, *rest)

    return run
