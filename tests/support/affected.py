"""The tests of what changed: `python -m tests.support.affected` prints their paths, for `make check`.

tests/unit mirrors sft/, so the tests of sft/a/b.py are tests/unit/a/test_b*.py; a recipe's are tests/recipes, and the
batch scripts' tests/slurm. What holds for all files is tested in any case.
"""

import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
OF_ALL_FILES = tuple(f"tests/unit/test_{name}.py" for name in ("imports", "mirror", "pages", "style"))
OF_FOLDERS = {"data_recipes": "tests/recipes", "configs": "tests/unit/config", "slurm": "tests/slurm"}

PAGES, PIPELINE = "tests/integration/test_docs.py", "tests/integration/test_pipeline.py"
FIELDS, GATE, NATIVE = (
    f"tests/unit/{name}.py" for name in ("config/test_fields", "train/numerics/test_gate", "train/engine/test_native")
)
TESTED_ELSEWHERE = {
    **{f"cli/{name}": PAGES for name in ("build", "chat", "demo", "diff", "evaluate", "export", "inspect", "verify")},
    "cli/doctor_model": "tests/unit/cli/test_doctor.py",
    **{f"config/{name}": FIELDS for name in ("data", "engine", "inference", "model", "train")},
    "data/documents": "tests/unit/data/test_shards.py",
    "data/filters/rewrite": "tests/unit/data/filters/test_mojibake.py",
    "data/inspect/show_diff": "tests/unit/data/inspect/test_diff.py",
    "data/sources/fetch": "tests/integration/test_fetch.py",
    "data/sources/hub": "tests/integration/test_fetch.py",
    "data/sources/json_array": "tests/unit/data/sources/test_files.py",
    "data/sources/parquet": "tests/unit/data/sources/test_files.py",
    "evals/evaluate": PIPELINE,
    "inference/answer": "tests/integration/test_second_format.py",
    "inference/chat": PIPELINE,
    "inference/load": "tests/unit/export/test_hf_export.py",
    "model/base": "tests/unit/model/test_registry.py",
    "model/kv_cache": "tests/unit/model/neox/test_model_parity.py",
    "model/neox/hf_config": "tests/unit/model/test_hf_folder.py",
    "model/objectives/base": "tests/unit/train/engine/test_native_objectives.py",
    "model/objectives/next_token": "tests/unit/train/test_held_out_loss.py",
    "model/weight_files": "tests/unit/model/test_hf_folder.py",
    "train/checkpoint/checkpointer": "tests/unit/train/checkpoint/test_store.py",
    "train/checkpoint/rng": "tests/integration/test_resume.py",
    "train/checkpoint/tensors": NATIVE,
    "train/distributed/rank_batches": "tests/unit/train/engine/test_fsdp.py",
    "train/engine/base": NATIVE,
    "train/engine/deepspeed/zero_layout": "tests/unit/train/engine/deepspeed/test_engine.py",
    "train/engine/forward": "tests/unit/train/test_held_out_loss.py",
    "train/engine/precision": NATIVE,
    "train/fingerprint": "tests/unit/train/test_run_folder.py",
    "train/inputs": "tests/unit/train/test_inspect_step.py",
    "train/monitor/bad_steps": "tests/unit/train/monitor/test_health_of_runs.py",
    "train/monitor/ledger": "tests/unit/train/test_verify_run.py",
    **{
        f"train/monitor/{name}": "tests/unit/train/monitor/test_metrics_trackers.py"
        for name in ("tensorboard", "wandb")
    },
    "train/monitor/records": "tests/unit/train/monitor/test_metrics.py",
    "train/numerics/reference": GATE,
    "train/run_layout": "tests/unit/train/test_run_folder.py",
    "train/setup": "tests/unit/train/test_loop.py",
}
"""Where to look for the tests of a module that has no test file of its own name."""


def affected(changed: Iterable[str], root: Path = ROOT) -> list[str]:
    """The test files and folders for these files, by their paths in the repository."""
    found = set(OF_ALL_FILES)
    for name in changed:
        found.update(_tests_of(Path(name), root))
    return sorted(path for path in found if (root / path).exists())


def changed_files(root: Path = ROOT) -> list[str]:
    """Files that differ from the last commit; of a clean tree, those that it changed."""
    edited = _git(root, "diff", "--name-only", "HEAD") + _git(root, "ls-files", "--others", "--exclude-standard")
    return edited or _git(root, "diff", "--name-only", "HEAD~1", "HEAD")


def _tests_of(path: Path, root: Path) -> Iterator[str]:
    top = path.parts[0]
    if top in OF_FOLDERS:
        yield OF_FOLDERS[top]
    elif top == "tests" and path.name.startswith("test_"):
        yield path.as_posix()
    elif top == "sft" and path.suffix == ".py":
        folder = root / "tests/unit" / path.parent.relative_to("sft")
        names = (f"test_{path.stem}.py", f"test_{path.stem}_*.py")
        yield from (found.relative_to(root).as_posix() for pattern in names for found in folder.glob(pattern))
        elsewhere = TESTED_ELSEWHERE.get(path.relative_to("sft").with_suffix("").as_posix(), "")
        if elsewhere.startswith("tests/unit/"):  # the others take minutes
            yield elsewhere


def _git(root: Path, *words: str) -> list[str]:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []


if __name__ == "__main__":
    sys.stdout.write(" ".join(affected(changed_files())))
