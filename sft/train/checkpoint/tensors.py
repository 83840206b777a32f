"""Weights and moments of a checkpoint on disk: the same for every engine and any number of processes.

One process writes a Hugging Face folder and optimizer.safetensors; of several, each writes its slices into files of
its own. Moments are stored as `PARAMETER.exp_avg` and `PARAMETER.exp_avg_sq`.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sft.config.model import ModelConfig
from sft.errors import DataError
from sft.model.hf_folder import write_config, write_folder
from sft.model.weight_files import PIECES, StoredTensors, piece_key
from sft.train.engine.base import MOMENTS, Kind, TensorSlice

OPTIMIZER = "optimizer.safetensors"
OPTIMIZER_PIECES = "optimizer-{number:05d}-of-{count:05d}.safetensors"
MAX_SHARD_BYTES = 5_000_000_000


def write_slices(pieces: Iterable[TensorSlice], shape: ModelConfig, folder: Path, rank: int, size: int) -> list[Path]:
    """Write this process's part; the first process writes config.json too. Returns the files."""
    weights: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    for piece in pieces:
        if piece.kind == "weight":
            weights[_key(piece, piece.name)] = piece.tensor
        else:
            moments[_key(piece, f"{piece.name}.{piece.kind}")] = piece.tensor
    if size == 1:
        files = [*write_folder(weights, shape, folder, torch.float32, MAX_SHARD_BYTES), folder / OPTIMIZER]
        _save(moments, files[-1])
        return files
    number = {"number": rank + 1, "count": size}
    files = [folder / PIECES.format(**number), folder / OPTIMIZER_PIECES.format(**number)]
    for tensors, file in zip((weights, moments), files, strict=True):
        _save(tensors, file)
    return [*files, *([write_config(shape, folder, torch.float32)] if rank == 0 else [])]


class StoredSlices:
    """The tensors that the processes of a run have saved.

    Raises: DataError if the files do not hold exactly this model's parameters and, where there are any, moments.
    """

    def __init__(self, folder: Path, weights: StoredTensors, trained: Iterable[str] | None = None) -> None:
        """`trained` names the parameters that have moments; by default all do."""
        self._folder, self._weights, shapes = folder, weights, weights.shapes
        files = sorted(folder.glob("optimizer*.safetensors"))
        names = {f"{name}.{kind}": shapes[name] for name in trained or shapes for kind in MOMENTS}
        self._moments = StoredTensors(files, names, folder) if _hold_anything(files) else None

    def flat(self, kind: Kind, name: str, start: int, stop: int) -> Tensor:
        """The elements of a flattened parameter, or of one of its moments, from start to stop."""
        if kind == "weight":
            return self._weights.flat(name, start, stop)
        if self._moments is None:
            raise DataError("holds no moments", on=self._folder, hint="take another checkpoint")
        return self._moments.flat(f"{name}.{kind}", start, stop)


def _key(piece: TensorSlice, name: str) -> str:
    return name if piece.is_whole else piece_key(name, piece.start)


def _save(tensors: Mapping[str, Tensor], file: Path) -> None:
    save_file(dict(tensors), file)
    file.chmod(0o644)  # safetensors leaves its files readable by their owner only


def _hold_anything(files: Iterable[Path]) -> bool:
    """False for a checkpoint saved before the first update."""
    for file in files:
        try:
            with safe_open(file, framework="pt") as stream:
                if stream.keys():
                    return True
        except SafetensorError:
            return True  # reading it reports the error
    return False
