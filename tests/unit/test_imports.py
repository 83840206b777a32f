"""Imports point one way, every heavy package has one home, and nothing runs code that it read."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "sft").rglob("*.py"))
CONVERTERS = sorted((ROOT / "data_recipes").glob("*/convert.py"))

# Each may import from itself and from what stands before it; names are files or folders of sft/.
LAYERS = (
    *("version", "errors", "redact", "hashing", "bundle", "config"),
    *("console", "storage", "chat", "data", "model", "train", "inference", "evals", "export", "slurm", "cli"),
    "__main__",
)
# The same inside the large folders.
LAYERS_INSIDE = {
    "model": (
        *("activation_checkpointing", "attention", "kv_cache", "embedding_noise", "loss", "weight_files"),
        *("base", "lora", "compile", "objectives", "neox", "registry", "hf_folder"),
    ),
    "data": (
        *("documents", "manifest", "shards", "digests", "words"),
        *("sources", "filters", "dedup", "batches", "report", "build", "inspect"),
    ),
    "train": (
        *("run_layout", "fingerprint", "lr_schedule", "distributed", "stop"),
        *("engine", "held_out_loss", "numerics", "monitor", "checkpoint"),
        *("run_folder", "inputs", "inspect_step", "verify_run", "run", "setup", "dry_run", "loop"),
    ),
}
MAX_FILES_IN_A_FOLDER = 14
# What only a model family may know of itself: its name and those of its layers.
OF_ONE_FAMILY = re.compile(r"neox|embed_(in|out)\b|query_key_value|dense_\w*4h|final_layer_norm", re.IGNORECASE)
# The tokenizer is called GPT-NeoX-20B's, whatever model reads it; the config says which layers get adapters.
MAY_NAME_A_FAMILY = ("model/neox/", "model/registry.py", "chat/", "config.py", "config/")
# transformers has its home in a folder; everything else in one file, or two.
HOMES: dict[str, str | tuple[str, ...]] = {
    "omegaconf": "config/",
    "pyarrow": ("data/shards.py", "data/documents.py", "data/sources/parquet.py"),
    "huggingface_hub": "data/sources/hub.py",
    "msgspec": ("data/sources/rows.py", "data/manifest.py"),
    "jinja2": "data/report/html.py",
    "backports": "data/sources/files.py",
    "py3langid": "data/filters/language.py",
    "ftfy": "data/filters/mojibake.py",
    "tokenizers": "chat/tokenizer.py",
    "fastokens": "chat/fast_tokenizer.py",
    "deepspeed": "train/engine/deepspeed/engine.py",
    "wandb": "train/monitor/wandb.py",
    "tensorboard": "train/monitor/tensorboard.py",
    "packaging": "cli/doctor.py",
    "transformers": "export/",
}
WITHOUT_TORCH = ("errors", "redact", "hashing", "bundle", "config", "console", "storage", "chat", "data", "version")
FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"exec", "eval", "compile", "__import__"}


def imported(path: Path) -> Iterator[str]:
    """The dotted names of every module that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            # `from sft.data import build` imports the module sft.data.build.build.
            yield from (f"{node.module}.{name.name}" for name in node.names)


def words(path: Path) -> Iterator[str]:
    """Every name and every text in a file's code, without docstrings."""
    tree = ast.parse(path.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    yield from imported(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value
        elif isinstance(node, ast.Name | ast.Attribute | ast.arg | ast.keyword):
            name = getattr(node, {ast.Name: "id", ast.Attribute: "attr"}.get(type(node), "arg"))
            yield name or ""


def layer(name: str) -> str:
    """The layer of a dotted name below sft."""
    return name.split(".")[1]


def of_file(path: Path) -> str:
    """The layer of a file below sft/."""
    return path.relative_to(ROOT / "sft").parts[0].removesuffix(".py")


def labels(paths: list[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]


def test_the_scan_sees_the_code() -> None:
    assert len(MODULES) > 40
    assert len(CONVERTERS) >= 5
    assert "sft.errors.SftError" in set(imported(ROOT / "sft" / "cli/main.py"))
    assert {"gpt_neox", "embed_out", "query_key_value"} <= set(words(ROOT / "sft/model/neox/model.py"))


@pytest.mark.parametrize("path", MODULES, ids=labels(MODULES))
def test_imports_point_one_way(path: Path) -> None:
    mine = of_file(path)
    if mine == "__init__":
        return
    allowed = LAYERS[: LAYERS.index(mine) + 1]
    backward = [name for name in imported(path) if name.startswith("sft.") and layer(name) not in allowed]
    assert backward == []


@pytest.mark.parametrize("folder", ["model", "data"])
def test_model_and_data_do_not_know_each_other(folder: str) -> None:
    (other,) = {"model", "data"} - {folder}
    files = [path for path in MODULES if of_file(path) == folder]
    assert len(files) > 10
    assert [path for path in files if any(name.startswith(f"sft.{other}.") for name in imported(path))] == []


@pytest.mark.parametrize("path", MODULES, ids=labels(MODULES))
def test_no_code_knows_a_model_family_but_its_own_folder_and_the_registry(path: Path) -> None:
    if not path.relative_to(ROOT / "sft").as_posix().startswith(MAY_NAME_A_FAMILY):
        assert [text for text in words(path) if OF_ONE_FAMILY.search(text)] == []


@pytest.mark.parametrize("folder", LAYERS_INSIDE)
def test_imports_point_one_way_inside_the_folder_too(folder: str) -> None:
    layers, backward = LAYERS_INSIDE[folder], []
    for path in (path for path in MODULES if of_file(path) == folder and path != ROOT / "sft" / folder / "__init__.py"):
        mine = path.relative_to(ROOT / "sft" / folder).parts[0].removesuffix(".py")
        inside = [name.split(".")[2] for name in imported(path) if name.startswith(f"sft.{folder}.")]
        assert {mine, *inside} <= set(layers)
        backward += [f"{mine} imports {name}" for name in inside if layers.index(name) > layers.index(mine)]
    assert backward == []


def test_a_folder_is_seen_at_a_glance() -> None:
    folders: dict[Path, int] = {}
    for path in MODULES:
        folders[path.parent] = folders.get(path.parent, 0) + (path.name != "__init__.py")
    assert len(folders) > 15
    assert {str(folder): count for folder, count in folders.items() if count > MAX_FILES_IN_A_FOLDER} == {}


@pytest.mark.parametrize("path", MODULES, ids=labels(MODULES))
def test_a_heavy_package_is_imported_in_its_home_only(path: Path) -> None:
    place = path.relative_to(ROOT / "sft").as_posix()
    strangers = {
        package
        for package in (name.split(".")[0] for name in imported(path))
        if package in HOMES and not place.startswith(HOMES[package])
    }
    assert strangers == set()


@pytest.mark.parametrize("path", CONVERTERS, ids=labels(CONVERTERS))
def test_a_recipe_needs_nothing_but_the_conversation_type(path: Path) -> None:
    ours = {name.rpartition(".")[0] for name in imported(path) if name.split(".")[0] == "sft"}
    assert ours == {"sft.chat.conversation"}


@pytest.mark.parametrize("path", [path for path in MODULES if of_file(path) in WITHOUT_TORCH], ids=str)
def test_building_data_needs_no_torch(path: Path) -> None:
    assert "torch" not in {name.split(".")[0] for name in imported(path)}


def test_building_data_imports_no_torch_on_the_way() -> None:
    modules = [
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in MODULES
        if of_file(path) in WITHOUT_TORCH and path.name != "__init__.py"
    ]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["no-such-command"]], ids=str)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    heavy = {"torch", "transformers", "numpy", "rich", *HOMES}
    code = (
        "import sys\nfrom sft.cli.main import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_every_init_file_is_empty() -> None:
    assert [path for path in MODULES if path.name == "__init__.py" and path.read_text()] == []


def test_every_package_folder_has_an_init_file() -> None:
    assert {path.parent for path in MODULES} == {path.parent for path in MODULES if path.name == "__init__.py"}


@pytest.mark.parametrize("path", [*MODULES, *CONVERTERS], ids=labels([*MODULES, *CONVERTERS]))
def test_nothing_runs_code_that_it_read(path: Path) -> None:
    found = [f"import {name}" for name in imported(path) if name.split(".")[0] in FORBIDDEN_MODULES]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            found.append(f"{node.func.id}() in line {node.lineno}")
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            found.append(f"trust_remote_code in line {node.value.lineno}")
        if isinstance(node, ast.keyword) and node.arg in ("weights_only", "shell"):
            safe = node.arg == "weights_only"
            if not (isinstance(node.value, ast.Constant) and node.value.value is safe):
                found.append(f"{node.arg} in line {node.value.lineno}")
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "yaml.load", "yaml.unsafe_load"):
            found.append(f"{ast.unparse(node.func)} in line {node.lineno}")
    assert found == []
