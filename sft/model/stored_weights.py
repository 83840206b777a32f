"""The parameters in a Hugging Face GPT-NeoX folder: which file holds which, read one at a time.

Newer writers call the head `lm_head` instead of `embed_out`; both are read. Only safetensors are opened: a pickle
from outside can run code.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sft.errors import DataError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

HEAD, NEWER_HEAD = "embed_out.weight", "lm_head.weight"
# Tables that older writers stored although they follow from the config.
_BUFFERS = ("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias")


class StoredWeights(Mapping[str, Tensor]):
    """The parameters in a folder, each read from disk when it is asked for.

    Raises: DataError at once if the folder does not hold exactly the parameters of these shapes.
    """

    def __init__(self, folder: Path, shapes: Mapping[str, torch.Size]) -> None:
        self._places, problems = _places(folder, shapes)
        if problems:
            raise DataError("; ".join(problems), on=folder, hint="config.json and weights must belong together")

    def __getitem__(self, name: str) -> Tensor:
        file, stored_name = self._places[name]
        with safe_open(file, framework="pt", device="cpu") as stream:
            tensor: Tensor = stream.get_tensor(stored_name)
            return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _places(folder: Path, shapes: Mapping[str, torch.Size]) -> tuple[dict[str, tuple[Path, str]], list[str]]:
    """For each parameter, the file and the name under which it is stored; and everything that does not fit."""
    places: dict[str, tuple[Path, str]] = {}
    problems = []
    for file in _weight_files(folder):
        for stored, (shape, number_format) in _stored(file).items():
            name = HEAD if stored == NEWER_HEAD else stored
            if name in places:
                problems.append(f"{stored} is there twice")
            elif name in shapes:
                places[name] = (file, stored)
                if shape != tuple(shapes[name]):
                    problems.append(f"{stored} has shape {list(shape)}, expected {list(shapes[name])}")
                if number_format not in ("F32", "F16", "BF16", "F64"):
                    problems.append(f"{stored} holds {number_format} numbers, expected floating point")
            elif not stored.endswith(_BUFFERS):
                problems.append(f"{stored} is not expected")
    return places, problems + [f"{name} is missing" for name in shapes if name not in places]


def _stored(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and number format of every tensor in a file, from its header alone."""
    try:
        with safe_open(file, framework="pt", device="cpu") as stream:
            slices = {name: stream.get_slice(name) for name in stream.keys()}  # noqa: SIM118 - not a mapping
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise DataError(f"not readable as safetensors: {error}", on=file, hint="fetch the file again") from error


def _weight_files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        try:
            weight_map: dict[str, str] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            return [folder / name for name in sorted(set(weight_map.values()))]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"not readable: {error!r}", on=folder / INDEX, hint="fetch the file again") from error
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if any(folder.glob("*.bin")):
        raise DataError(
            "holds pickled weights only, which could run code when opened",
            on=folder,
            hint="convert it where you trust it: AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)",
        )
    raise DataError(f"holds neither {WEIGHTS} nor {INDEX}", on=folder, hint="name a Hugging Face model folder")
