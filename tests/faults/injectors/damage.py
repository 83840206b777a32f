"""Family B: damaged or foreign checkpoints."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sft.config.train import TrainConfig
from sft.errors import StorageError
from sft.storage.atomic import staging_path
from sft.storage.manifest import write_manifest
from sft.train.checkpoint.store import KIND, SCHEMA_VERSION, open_staging, publish_staging
from tests.faults import failpoints
from tests.faults.fixtures import NUM_STEPS, content
from tests.faults.oracle import Lost, Unfired, Wrong, checkpoint, is_whole, saved_steps
from tests.faults.process import Journal
from tests.faults.sandbox import Bench, refused

LAST = checkpoint(Path(), NUM_STEPS)


def flipped_bit(bench: Bench) -> str:
    """One bit of one file of the newest checkpoint is not what was written."""
    config = bench.finished()
    path = bench.rng.choice(files(newest(config)))
    flip(path, bench.rng.randrange(8 * path.stat().st_size))
    return falls_back(bench, config)


def cut_file(bench: Bench) -> str:
    """A file is cut short, emptied, or holds zeros where its second half was."""
    config = bench.finished()
    path = bench.rng.choice(files(newest(config)))
    size = path.stat().st_size
    kept = (0, size - 1, bench.rng.randrange(size), size // 2)[bench.n % 4]
    os.truncate(path, kept)
    if bench.n % 4 == 3:
        os.truncate(path, size)
    return falls_back(bench, config)


def missing_file(bench: Bench) -> str:
    """A file is missing, or one is there that nobody wrote."""
    config = bench.finished()
    path = bench.rng.choice(files(newest(config)))
    if bench.n % 5 == 4:
        shutil.copy(path, path.with_name("model-2.safetensors"))
    else:
        path.unlink()
    return falls_back(bench, config)


def hurt_manifest(bench: Bench) -> str:
    """The manifest is missing, cut, of another kind, tells wrong hashes, or is of a newer schema (no damage)."""
    config = bench.finished()
    path = newest(config) / "manifest.json"
    manifest = json.loads(path.read_text())
    way = ("newer", "missing", "cut", "hash", "kind", "list")[bench.n % 6]
    if way == "newer":
        before = content(Path(config.out))
        path.write_text(json.dumps({**manifest, "schema_version": 999}))
        ending = refused(bench.train(config), 74, "schema version 999", "use the version of sft that wrote it")
        path.write_bytes(before[path.relative_to(config.out).as_posix()])
        unchanged(Path(config.out), before)
        return ending
    first = next(iter(manifest["files"].values()))
    changes: dict[str, Callable[[], Any]] = {
        "missing": path.unlink,
        "cut": lambda: os.truncate(path, bench.rng.randrange(path.stat().st_size)),
        "hash": lambda: (first.update(sha256="0" * 64), path.write_text(json.dumps(manifest))),
        "kind": lambda: path.write_text(json.dumps({**manifest, "kind": "shards"})),
        "list": lambda: path.write_text(json.dumps({**manifest, "files": {}})),
    }
    changes[way]()
    return falls_back(bench, config)


def mixed_steps(bench: Bench) -> str:
    """The manifest of one step stands beside files of another."""
    config = bench.finished()
    other, last = checkpoint(Path(config.out), NUM_STEPS - 4), newest(config)
    if bench.n % 2:
        shutil.copy(other / "manifest.json", last / "manifest.json")
    else:
        for path in files(last):
            if path.suffix == ".safetensors":
                shutil.copy(other / path.name, path)
    return falls_back(bench, config)


def lying_about(bench: Bench) -> str:
    """Staging, trash and bad folders of dead processes lie about, and files of other programs."""
    config = bench.finished()
    checkpoints = Path(config.out) / "checkpoints"
    shutil.rmtree(newest(config))
    for name in (".staging-step-00000012", ".trash-step-00000004", ".bad-step-00000012"):
        shutil.copytree(checkpoint(Path(config.out), 8), checkpoints / name)
    (checkpoints / "step-notes.txt").touch()
    (checkpoints / ".staging-step-00000012" / "manifest.json").unlink()
    (checkpoints / "step-00000099.part").mkdir()
    ending = bench.ends_alike(config)
    if not (checkpoints / ".bad-step-00000012").is_dir():
        raise Lost("the bad folder was deleted")
    return ending


def all_damaged(bench: Bench) -> str:
    """Every save is damaged or gone: the run is never started from scratch, and nothing is deleted."""
    config = bench.finished()
    out, whole = Path(config.out), bench.folder / "whole"
    shutil.copytree(out, whole)
    for step in saved_steps(out):
        path = bench.rng.choice(files(checkpoint(out, step)))
        flip(path, bench.rng.randrange(8 * path.stat().st_size))
    if bench.n % 3 == 2:
        shutil.rmtree(out / "checkpoints")
    for _ in range(2):
        ending = refused(bench.train(config), 74, "no whole checkpoint is left", "name another out")
    if saved_steps(out):
        raise Wrong(f"still under final names: {saved_steps(out)}")
    kept = len(list((out / "checkpoints").glob(".bad-step-*")))
    if bench.n % 3 != 2 and kept != 3:
        raise Lost(f"of 3 bad checkpoints {kept} were kept")
    shutil.rmtree(out)
    shutil.copytree(whole, out)
    shutil.rmtree(newest(config))
    bench.ends_alike(config)
    return ending


def taken_name(bench: Bench) -> str:
    """An empty folder stands under the name of a save to come."""
    config = bench.config()
    final = checkpoint(Path(config.out), (4, 8, 12)[bench.n % 3])

    def make(number: int, journal: Journal) -> None:
        if number == 2:
            journal.fire("empty folder")
            final.mkdir(parents=True)

    victim = bench.train(config, failpoints.on_call(ENGINE_STEP, make))
    if code := victim.wait():
        raise Wrong(f"exit code {code}: {victim.messages[-600:]}")
    if not victim.fired:
        raise Unfired("no folder was made")
    bench.is_alike(config)
    shutil.rmtree(newest(config))
    checkpoint(Path(config.out), NUM_STEPS).mkdir()
    return bench.ends_alike(config)


def changed_input(bench: Bench) -> str:
    """A setting that may not change, the tokenizer or the data is another one."""
    config = bench.finished()
    shutil.rmtree(newest(config))
    before = content(Path(config.out))
    changed, name = CHANGES[bench.n % len(CHANGES)]
    if name in ("tokenizer", "shards"):
        hurt = _other_shards if name == "shards" else _other_tokenizer
        other = replace(config, shards=str(hurt(bench)))
    else:
        other = changed(config)
    ending = refused(bench.train(other), 78, "under other conditions", name, "was .*, now ")
    unchanged(Path(config.out), before)
    bench.ends_alike(config)
    return ending


CHANGES: list[tuple[Callable[[TrainConfig], TrainConfig], str]] = [
    (lambda config: replace(config, seed=1), "seed"),
    (lambda config: replace(config, batch_packs=8), "batch_packs"),
    (lambda config: config, "tokenizer"),
    (lambda config: config, "shards"),
    (lambda config: replace(config, epochs=2.5), "epochs"),
    (lambda config: replace(config, precision="bf16"), "precision"),
    (lambda config: replace(config, optimizer=replace(config.optimizer, lr=2e-3)), r"optimizer\.lr"),
    (lambda config: replace(config, optimizer=replace(config.optimizer, betas=(0.9, 0.95))), r"optimizer\.betas"),
    (lambda config: replace(config, optimizer=replace(config.optimizer, schedule="linear")), r"optimizer\.schedule"),
    (lambda config: replace(config, max_steps=11), "max_steps"),
]


class Canary:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


def pickled(bench: Bench) -> str:
    """A file of a checkpoint is a pickle that runs code when it is loaded, and every hash of the folder is true."""
    import torch

    config = bench.finished()
    shutil.rmtree(newest(config))  # a finished run loads no weights
    canary, last = bench.folder / "canary", checkpoint(Path(config.out), NUM_STEPS - 4)
    victims = [path for path in files(last) if path.name != "manifest.json"]
    path = victims[bench.n % len(victims)]
    if bench.n % 2:
        torch.save({"x": Canary(canary)}, path)
    else:
        path.write_bytes(pickle.dumps(Canary(canary)))
    (last / "manifest.json").unlink()
    write_manifest(last, KIND, SCHEMA_VERSION, {"step": NUM_STEPS - 4})
    victim = bench.train(config)
    code = victim.wait()
    if canary.exists():
        raise Wrong("the code in the pickle was run")
    if path.name == "tokenizer.json" and code == 0:  # training takes the shards' own
        return "S"
    if code not in (65, 74, 78):
        raise Wrong(f"exit code {code}: {victim.messages[-600:]}")
    return refused(victim, code, path.name)


def loads_nothing(bench: Bench) -> str:
    """The library that reads tensors returns nothing, or raises what is no Exception."""
    config = bench.finished()
    shutil.rmtree(newest(config))
    before = content(Path(config.out))

    def load(_number: int, journal: Journal) -> Any:
        journal.fire("load")
        if bench.n % 2:
            raise Gone
        return lambda _file: Nothing()

    target = LOADERS[bench.n // 2 % len(LOADERS)]
    victim = bench.train(config, failpoints.on_call(target, load, after=True))
    if not (victim.wait(), victim.fired)[1]:
        raise Unfired("nothing was loaded")
    if victim.wait() == 0:
        raise Wrong("went on without weights")
    unchanged(Path(config.out), before)
    bench.ends_alike(config)
    return f"R {victim.wait()}"


class Gone(BaseException):
    """What some libraries raise, though it is no Exception."""


class Nothing:
    """A file of tensors that holds none."""

    def __enter__(self) -> "Nothing":
        return self

    def __exit__(self, *_: object) -> None:
        return

    def keys(self) -> list[str]:
        """No name."""
        return []


LOADERS = ("sft.train.checkpoint.tensors:safe_open", "sft.model.weight_files:safe_open")


def published_twice(bench: Bench) -> str:
    """The same step is saved a second time."""
    config = bench.finished()
    before, step = content(Path(config.out)), saved_steps(Path(config.out))[bench.n % 3]
    final = checkpoint(Path(config.out), step)

    def job() -> int:
        try:
            if bench.n % 2:
                open_staging(final, 0)
            else:  # the name was taken meanwhile
                staging_path(final).mkdir()
                publish_staging(final, step, {}, [])
        except StorageError as error:
            print(error.message())
            return error.exit_code
        return 0

    ending = refused(
        bench.run(job), 74, "exists already and is never overwritten" if bench.n % 2 else "cannot be written"
    )
    unchanged(Path(config.out), before)
    return ending


ENGINE_STEP = "sft.train.engine.native:TorchEngine.step"


def falls_back(bench: Bench, config: TrainConfig) -> str:
    """Let a run whose newest checkpoint is damaged go on: from the one before, the bad one kept aside."""
    before = content(newest(config))
    # A line's end in the manifest's own text says nothing, so that nothing is damaged.
    is_harmless = is_whole(newest(config)) and _manifest(newest(config)) == _manifest(bench.original(config, NUM_STEPS))
    ending = bench.ends_alike(config)
    aside = Path(config.out) / "checkpoints" / f".bad-{LAST.name}"
    if is_harmless and not aside.is_dir():
        return ending
    if not aside.is_dir():
        raise Wrong("the damaged checkpoint was used")
    if content(aside) != before:
        raise Lost("the damaged checkpoint was changed when it was set aside")
    return ending


def newest(config: TrainConfig) -> Path:
    """The folder of the last step's checkpoint."""
    return checkpoint(Path(config.out), NUM_STEPS)


def files(folder: Path) -> list[Path]:
    """All files of a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def unchanged(folder: Path, before: dict[str, bytes]) -> None:
    """Make sure that a folder holds what it held.

    Raises: Lost.
    """
    now = content(folder)
    names = sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
    if names := [name for name in names if name not in (".lock", "config.yaml", "metrics.jsonl")]:
        raise Lost(f"a refusal changed {names[:5]}")


def _manifest(folder: Path) -> Any:
    try:
        return json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return None


def _other_shards(bench: Bench) -> Path:
    from tests.conftest import write_tiny_shards

    folder = bench.folder / "shards"
    folder.mkdir()
    write_tiny_shards(folder, num_train=23, num_valid=7)
    return folder


def _other_tokenizer(bench: Bench) -> Path:
    folder = bench.folder / "shards"
    shutil.copytree(bench.material.shards, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("token1", "word1"))
    computed = ("kind", "schema_version", "content_digest", "files", "manifest_sha256")
    facts = {name: value for name, value in manifest.items() if name not in computed}
    from sft.data.shards import KIND as SHARDS
    from sft.data.shards import SCHEMA_VERSION as SHARDS_VERSION
    from sft.hashing import file_sha256

    facts["tokenizer"] |= {"sha256": file_sha256(tokenizer)}
    (folder / "manifest.json").unlink()
    write_manifest(folder, SHARDS, SHARDS_VERSION, facts)
    return folder
