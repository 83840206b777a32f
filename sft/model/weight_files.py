"""Tensors in safetensors files, whole or in slices; only the requested elements are read.

A tensor is stored under its own name, or in slices under `NAME@START`: the flattened tensor's elements from START on.
So several processes may each write their share, and any other number of them read it. Only safetensors are opened:
an untrusted pickle can run code.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sft.errors import DataError
from sft.storage.json_file import read_json, readable

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PIECES = "weights-{number:05d}-of-{count:05d}.safetensors"
"""The file of each of several processes."""
FLOATING_POINT = ("F32", "F16", "BF16", "F64")


def piece_key(name: str, start: int) -> str:
    """The name under which the elements of a tensor from `start` on are stored."""
    return f"{name}@{start}"


@dataclass(frozen=True)
class _Place:
    file: Path
    key: str
    start: int
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + prod(self.shape)

    def read(self, start: int, stop: int) -> Tensor:
        """The elements of the whole tensor from start to stop, which must lie in this slice."""
        row = prod(self.shape[1:])
        first, last = (start - self.start) // row, -(-(stop - self.start) // row)
        with safe_open(self.file, framework="pt", device="cpu") as stream:
            # A scalar has no rows to select.
            rows = stream.get_slice(self.key)[first:last] if self.shape else stream.get_tensor(self.key)
        skipped = start - self.start - first * row
        flat: Tensor = rows.reshape(-1)[skipped : skipped + stop - start]
        return flat


class StoredTensors(Mapping[str, Tensor]):
    """Tensors by name, each read from disk on access.

    Raises: DataError at once if the files do not hold exactly the tensors of these shapes.
    """

    def __init__(
        self,
        files: Sequence[Path],
        shapes: Mapping[str, Sequence[int]],
        where: Path,
        rename: Callable[[str], str | None] = lambda name: name,
    ) -> None:
        """`rename` gives the name of a stored tensor, or None if it is to be left out."""
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        found = [place for file in files for place in _places(file)]
        self._places: dict[str, list[_Place]] = {name: [] for name in self.shapes}
        problems = list(self._sort_in(found, rename))
        problems += [text for name, places in self._places.items() for text in self._gaps(name, places)]
        if problems:
            raise DataError("; ".join(problems), on=where, hint="config.json and weights must belong together")

    def flat(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """The elements of a tensor from start to stop, as if it were flat."""
        end = prod(self.shapes[name]) if stop is None else stop
        parts = [
            place.read(max(start, place.start), min(end, place.stop))
            for place in self._places[name]
            if place.start < end and place.stop > start
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts or [torch.zeros(0)])

    def __getitem__(self, name: str) -> Tensor:
        return self.flat(name).reshape(self.shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def _sort_in(self, found: Sequence[tuple[_Place, str]], rename: Callable[[str], str | None]) -> Iterator[str]:
        for place, number_format in found:
            stored, _, start = place.key.partition("@")
            name = rename(stored)
            if name is None:
                continue
            if name not in self._places:
                yield f"{stored} is not expected"
                continue
            self._places[name].append(place)
            if not start and place.shape != self.shapes[name]:
                yield f"{stored} has shape {list(place.shape)}, expected {list(self.shapes[name])}"
            if number_format not in FLOATING_POINT:
                yield f"{stored} holds {number_format} numbers, expected floating point"

    def _gaps(self, name: str, places: list[_Place]) -> Iterator[str]:
        """Every reason why these slices are not exactly the whole tensor; sorts them."""
        if not places:
            yield f"{name} is missing"
            return
        places.sort(key=lambda place: place.start)
        expected = 0
        for place in places:
            if place.start < expected:
                yield f"{place.key.partition('@')[0]} is there twice"
                return
            if place.start > expected:
                yield f"{name} has a gap: elements {expected} to {place.start} are missing"
            expected = place.stop
        if "@" in places[-1].key and expected != prod(self.shapes[name]):
            yield f"{name} has {expected} elements, expected {prod(self.shapes[name])}"


class StoredWeights(StoredTensors):
    """The parameters in a Hugging Face folder, or in a checkpoint that several processes wrote.

    Raises: DataError at once if the folder does not hold exactly the parameters of these shapes.
    """

    def __init__(
        self,
        folder: Path,
        shapes: Mapping[str, Sequence[int]],
        rename: Callable[[str], str | None] = lambda name: name,
    ) -> None:
        super().__init__(_weight_files(folder), shapes, folder, rename)


def _weight_files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        with readable(folder / INDEX, hint="fetch the file again"):
            return [folder / name for name in sorted(set(read_json(folder / INDEX)["weight_map"].values()))]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if pieces := sorted(folder.glob("weights-*-of-*.safetensors")):
        return pieces
    if any(folder.glob("*.bin")):
        raise DataError(
            "holds pickled weights only, which could run code when opened",
            on=folder,
            hint="convert it where you trust it: AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)",
        )
    raise DataError(f"holds neither {WEIGHTS} nor {INDEX}", on=folder, hint="name a Hugging Face model folder")


def _places(file: Path) -> list[tuple[_Place, str]]:
    """Where every tensor of a file lies, and its number format, from the file's header alone."""
    try:
        with safe_open(file, framework="pt", device="cpu") as stream:
            slices = {name: stream.get_slice(name) for name in stream.keys()}  # noqa: SIM118 - not a mapping
            return [
                (_Place(file, key, int(key.partition("@")[2] or 0), tuple(part.get_shape())), part.get_dtype())
                for key, part in slices.items()
            ]
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"not readable as safetensors: {error}", on=file, hint="fetch the file again") from error
