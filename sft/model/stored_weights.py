"""The parameters in a Hugging Face GPT-NeoX folder, or in a checkpoint that several processes wrote.

Newer writers call the head `lm_head` instead of `embed_out`; both are read. Only safetensors are opened: a pickle
from outside can run code.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sft.errors import DataError
from sft.model.weight_files import StoredTensors
from sft.storage.json_file import read_json, readable

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PIECES = "weights-{number:05d}-of-{count:05d}.safetensors"
"""What each of several processes writes."""

HEAD, NEWER_HEAD = "embed_out.weight", "lm_head.weight"
# Tables that older writers stored although they follow from the config.
_BUFFERS = ("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias")


class StoredWeights(StoredTensors):
    """The parameters in a folder, each read from disk when it is asked for.

    Raises: DataError at once if the folder does not hold exactly the parameters of these shapes.
    """

    def __init__(self, folder: Path, shapes: Mapping[str, Sequence[int]]) -> None:
        super().__init__(_weight_files(folder), shapes, folder, _our_name)


def _our_name(stored: str) -> str | None:
    return None if stored.endswith(_BUFFERS) else HEAD if stored == NEWER_HEAD else stored


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
