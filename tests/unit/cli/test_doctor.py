"""The screens of `sft doctor`, as text."""

import io
import re
import shutil
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from sft.chat.tokenizer import ChatTokenizer
from sft.cli import doctor
from sft.cli.doctor_model import PACK_TOKENS, check_model, synthetic_pack
from sft.cli.main import main
from sft.config.model import ModelConfig
from sft.config.train import TrainConfig
from sft.config.yaml_text import as_yaml
from sft.errors import ConfigError, NumericsError
from sft.model import attention
from sft.model.attention import Documents
from sft.model.hf_folder import write_folder
from sft.model.neox.model import NeoX
from sft.model.registry import build

MakeConfig = Callable[..., TrainConfig]
HEALTHY = attention._attend_per_document
SHAPE = ModelConfig(vocab_size=600, hidden_size=64, num_layers=2, num_heads=2, intermediate_size=128, max_positions=256)

pytestmark = pytest.mark.usefixtures("one_thread")


def shown(act: Callable[..., None], *arguments: Any) -> str:
    """What a function prints on a terminal of 100 columns without colours."""
    stream = io.StringIO()
    act(*arguments, Console(file=stream, width=100, highlight=False))
    return stream.getvalue()


def without(monkeypatch: pytest.MonkeyPatch, *names: str, versions: dict[str, str] | None = None) -> None:
    """Some packages are not installed, others in other versions."""
    real, others = metadata.version, versions or {}

    def version(name: str) -> str:
        if name in names:
            raise metadata.PackageNotFoundError(name)
        return others.get(name) or real(name)

    monkeypatch.setattr(metadata, "version", version)


@pytest.fixture
def folder(tmp_path: Path, tokenizer: ChatTokenizer) -> Path:
    """A Hugging Face folder with fresh weights."""
    path = tmp_path / "model"
    path.mkdir()
    model = build(SHAPE, "cpu")
    model.initialise(torch.Generator().manual_seed(0))
    write(model, path)
    (path / "tokenizer.json").write_text(tokenizer.json, encoding="utf-8")
    return path


def write(model: NeoX, path: Path) -> None:
    write_folder(dict(model.named_parameters()), model.config, path, torch.float32, 1 << 30)


def leaks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents) -> torch.Tensor:
    return HEALTHY(q, k, v, Documents.of([documents.num_tokens]))


def test_screen_names_versions_kernels_engines_and_disk() -> None:
    text = shown(doctor.doctor)
    assert f"torch {metadata.version('torch')}" in text
    assert "required packages are here" in text
    cpu = next(line for line in text.splitlines() if line.startswith("cpu, "))
    assert cpu.count("sdpa per document") == 3
    assert "engines: torch" in text
    assert re.search(r"free here; checkpoints that fit: \d+ of 3B \(40\.7 GiB each\), \d+ of 7B", text)
    assert "configs for sft train: small_cpu, " in text
    assert f"batch scripts for Slurm: {doctor.ROOT / 'slurm'}\n" in text
    assert max(map(len, text.splitlines())) <= 100


def test_missing_extra_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "flash-attn", "wandb")
    text = shown(doctor.doctor)
    row = next(line for line in text.splitlines() if line.startswith("flash "))
    assert row.split()[1:3] == ["flash-attn", "missing"]
    command = next(line for line in text.splitlines() if line.startswith("to add "))
    assert "flash" in command
    assert "wandb" in command
    assert "pip install -c constraints.txt -e '.[" in command


def test_missing_or_outdated_requirement_ends_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "msgspec", versions={"torch": "2.1.0"})
    with pytest.raises(ConfigError, match=r"msgspec \(missing\)") as caught:
        shown(doctor.doctor)
    assert "torch (2.1.0, needs " in str(caught.value)
    assert "pip install" in str(caught.value.hint)


def test_every_extra_but_the_developers_has_a_purpose() -> None:
    project = tomllib.loads((doctor.ROOT / "pyproject.toml").read_text())["project"]
    assert doctor.PURPOSES.keys() == project["optional-dependencies"].keys() - {"dev"}


def test_requirements_come_from_the_metadata_where_there_are_no_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = ["torch>=2.6", "wandb>=0.18; extra == 'wandb'", "ruff; extra == 'dev'", "old; python_version < '3'"]
    monkeypatch.setattr(metadata, "requires", lambda _: named)
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    found = [(package.requirement.name, package.extra) for package in doctor.installed()]
    assert found == [("torch", None), ("wandb", "wandb")]
    assert doctor.install_command("wandb") == "pip install 'sft[wandb]'"


def test_folder_is_measured_in_every_precision_on_random_tokens(folder: Path) -> None:
    text = shown(check_model, folder, None, [])
    assert "random tokens: 5 documents, 256 tokens" in text
    header = next(line for line in text.splitlines() if "fp32" in line)
    assert header.split() == ["fp32", "bf16", "fp16"]
    assert "fp32, bf16, fp16: every check passed" in text
    table = text.split("with loss\n")[1]
    assert len(table.splitlines()) == 13, "no row is broken in two"


def test_config_is_measured_in_its_own_precision_on_its_own_shards(tiny_config: MakeConfig, tmp_path: Path) -> None:
    config = tiny_config(precision="bf16")
    file = tmp_path / "run.yaml"
    file.write_text(as_yaml(config))
    text = shown(check_model, file, None, ["precision=fp16"])
    assert f"of {config.shards}: 3 documents" in text.replace("\n", "")
    assert "fp16: every check passed" in text
    assert "bf16" not in text


def test_failed_check_is_shown_in_the_table_and_ends_in_code_70(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(attention, "_attend_per_document", leaks)
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["doctor", "--model", str(folder)]) == 70
    captured = capsys.readouterr()
    assert "tokens that see ahead or other documents" in captured.out
    assert "tokens that see ahead or other documents: " in captured.err


def test_spoilt_weights_end_in_a_numerics_error(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["embed_out.weight"][0, 0] = torch.inf
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(NumericsError, match=r"1 parameters hold values that are not finite: embed_out\.weight"):
        shown(check_model, folder, None, [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shards", "somewhere"], "belong to a model"),
        (["precision=fp16"], "belong to a model"),
        (["--model", "no-such-folder"], "no-such-folder"),
    ],
)
def test_wrong_calls_end_in_code_78(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *words]) == 78
    assert message in capsys.readouterr().err


def test_shards_of_another_vocabulary_are_refused(folder: Path, tiny_shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "shards"
    shutil.copytree(tiny_shards, copy)
    small = tmp_path / "small"
    small.mkdir()
    shutil.copy(folder / "tokenizer.json", small)
    model = build(ModelConfig(**{**SHAPE.__dict__, "max_positions": 32}), "cpu")
    model.initialise(torch.Generator().manual_seed(0))
    write(model, small)
    with pytest.raises(ConfigError, match="48 tokens per pack, the model has 600 embedding rows and 32 positions"):
        shown(check_model, small, copy, [])


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_synthetic_pack_fits_the_model_and_has_several_documents_with_loss(kind: str) -> None:
    pack, _ = synthetic_pack(SHAPE, torch.device(kind))
    assert pack.num_tokens <= min(SHAPE.max_positions, PACK_TOKENS)
    assert pack.input_ids_T.max() < SHAPE.vocab_size
    assert all(pack.loss_mask_T[place][1:].any() for _, place in pack.documents())
    assert len(pack.doc_lengths_N) > 2
