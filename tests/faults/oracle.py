"""How an injection can end, and the judgement of a run's folder by means that share no code with the product."""

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

MANIFEST = "manifest.json"
LOST, WRONG, SLOW, UNFIRED, BROKEN, BARRED = "LOST", "WRONG", "SLOW", "UNFIRED", "BROKEN", "BARRED"


class Failure(Exception):
    """An injection did not end as promised."""

    outcome = BROKEN


class Lost(Failure):
    """Data or state that was promised to be kept is gone."""

    outcome = LOST


class Wrong(Failure):
    """Something differs from the undisturbed run, or was answered in another way than promised."""

    outcome = WRONG


class Slow(Failure):
    """A time limit passed."""

    outcome = SLOW


class Unfired(Failure):
    """The fault never happened, so that the case says nothing."""

    outcome = UNFIRED


class Barred(Failure):
    """This machine does not let the fault be made, which is no verdict on the product."""

    outcome = BARRED


LOSS_TOLERANCE = 1e-5


@dataclass(frozen=True)
class FinalState:
    """Everything that a finished run is judged by."""

    facts: dict[str, Any]
    """Of state.json: step, position, counts, random generators, what the engine keeps, but no path and no version."""
    tensors: dict[str, bytes]
    records: list[dict[str, Any]]
    """What metrics.jsonl says of every step that counts, in the order of the file."""
    packs: list[list[int]]
    """What every step has trained on."""

    @classmethod
    def of(cls, out: Path, step: int) -> "FinalState":
        """The state of a run folder after its last step."""
        folder = out / "checkpoints" / f"step-{step:08d}"
        facts = json.loads((folder / "state.json").read_text())
        for name in ("config", "versions"):
            facts.pop(name, None)
        return cls(facts, tensors(folder), step_records(out), ledger(out))

    def differences(self, other: "FinalState") -> list[str]:
        """What is not the same to the bit, in words."""
        found = [f"state {name}" for name in self.facts if self.facts[name] != other.facts.get(name)]
        names = self.tensors.keys() ^ other.tensors.keys()
        names |= {
            name for name in self.tensors.keys() & other.tensors.keys() if self.tensors[name] != other.tensors[name]
        }
        found += [f"{len(names)} tensors such as {min(names)}"] if names else []
        if self.records != other.records:
            found.append(_record_difference(self.records, other.records))
        return found + (["row order"] if self.packs != other.packs else [])

    def gaps(self, other: "FinalState") -> list[str]:
        """What is not the same but for rounding, as it must be after another number of processes, in words."""
        found = ["row order"] if list(map(sorted, self.packs)) != list(map(sorted, other.packs)) else []
        for one, theirs in zip(self.records, other.records, strict=True):
            if not math.isclose(one["loss"], theirs["loss"], rel_tol=LOSS_TOLERANCE):
                found.append(f"loss of step {one['step']}: {theirs['loss']}, expected {one['loss']}")
        return found


def tensors(folder: Path) -> dict[str, bytes]:
    """The raw bytes of all tensors of a checkpoint, by name."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.safetensors")):
        kind = re.sub(r"-\d{5}-of-\d{5}", "", path.stem)
        with safe_open(path, "pt") as file:
            found |= {f"{kind}/{name}": file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118
    return found


COUNTED = ("step", "loss", "lr", "grad_norm", "scale", "skipped", "tokens", "supervised_tokens", "epoch")


def records(out: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; NaN and half lines are left out, as any reader of JSON would."""
    found = []
    path = out / "metrics.jsonl"
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def ledger(out: Path) -> list[list[int]]:
    """The packs of every step, in the order of the file; the steps must be there, once each."""
    lines = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    if [line["step"] for line in lines] != list(range(1, len(lines) + 1)):
        raise Wrong(f"the ledger holds the steps {[line['step'] for line in lines]}")
    return [line["packs"] for line in lines]


def step_records(out: Path) -> list[dict[str, Any]]:
    """What is said of every step that counts."""
    steps = [record for record in records(out) if record["kind"] == "step" and not record.get("superseded")]
    return [{name: record.get(name) for name in COUNTED} for record in steps]


def last_step(out: Path) -> int:
    """The last step that was reported."""
    return max((record["step"] for record in records(out) if record["kind"] == "step"), default=0)


def saved_steps(out: Path) -> list[int]:
    """The steps under a final name."""
    names = [path.name for path in (out / "checkpoints").glob("step-*")]
    return sorted(int(name[5:]) for name in names if re.fullmatch(r"step-\d{8}", name))


def checkpoint(out: Path, step: int) -> Path:
    """The folder of a step's checkpoint."""
    return out / "checkpoints" / f"step-{step:08d}"


def is_whole(folder: Path) -> bool:
    """Whether the folder holds exactly what its manifest says, every hash recomputed here."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    held = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {MANIFEST}
    return held == files.keys() and all(
        hashlib.sha256((folder / name).read_bytes()).hexdigest() == facts["sha256"] for name, facts in files.items()
    )


def require_kept(out: Path, reached: int, interval: int, num_kept: int) -> None:
    """What a run that died must have left: final names whole, one interval lost at most, no older save gone.

    Raises: Lost.
    """
    steps = saved_steps(out)
    for step in steps:
        if not is_whole(checkpoint(out, step)):
            raise Lost(f"step {step} stands under its final name and is not whole")
    newest = max(steps, default=0)
    if reached - newest > interval:
        raise Lost(f"died after step {reached}, newest save {newest}: more than {interval} steps are lost")
    said = sorted({record["step"] for record in records(out) if record["kind"] == "save"})
    if gone := set(said[-num_kept:]) - set(steps) if said and newest >= said[-1] else set():
        raise Lost(f"saves of steps {sorted(gone)} are gone")


def _record_difference(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> str:
    steps = [record["step"] for record in now]
    if steps != [record["step"] for record in before]:
        return f"metrics hold the steps {steps}"
    for one, other in zip(before, now, strict=True):
        if names := [name for name in one if one[name] != other[name]]:
            return f"metrics of step {one['step']}: {names[0]} {other[names[0]]}, expected {one[names[0]]}"
    return "metrics"
