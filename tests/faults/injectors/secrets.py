"""Family J: secrets, and trackers that fail."""

import json
import secrets
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sft.config.train import TrainConfig, WandbConfig
from sft.config.yaml_text import as_yaml
from tests.faults import failpoints
from tests.faults.fixtures import NUM_STEPS
from tests.faults.injectors.damage import flip
from tests.faults.oracle import FinalState, Unfired, Wrong, checkpoint, records
from tests.faults.process import Hook, Journal, Victim
from tests.faults.sandbox import Bench, refused, require

ENGINE_STEP = "sft.train.engine.native:TorchEngine.step"
VARIABLES = ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "DATABASE_PASSWORD")
KEY_FORMS = ("hf_{}", "sk-{}", "ghp_{}", "github_pat_{}")


def key_in_environment(bench: Bench) -> str:
    """A key lies in the environment: no file, no message, no tracker and no argument list may hold it."""
    key, name = secrets.token_hex(20), VARIABLES[bench.n % len(VARIABLES)]
    config = bench.config(wandb=WandbConfig(enabled=True))
    crash = bench.n % 2

    def look(number: int, journal: Journal) -> None:
        import os

        if number == 3 and os.environ[name] == key:
            journal.fire(name)
            journal.write("arguments", Path("/proc/self/cmdline").read_bytes().decode(errors="replace"))
            if crash:
                raise LookupError("planted")

    victim = bench.train(config, stub_wandb(), failpoints.on_call(ENGINE_STEP, look), environ={name: key})
    require(victim, int(crash))
    _require_absent(bench, victim, key)
    return "S"


def key_in_settings(bench: Bench) -> str:
    """A key is given as a setting, on the command line or in the file: refused, and not said again."""
    key = KEY_FORMS[bench.n // 2 % len(KEY_FORMS)].format(secrets.token_hex(20))
    path = bench.folder / "train.yaml"
    text, word = as_yaml(bench.config()), f"wandb.api_key={key}"
    if bench.n % 2:
        text, word = text.replace("project: sft", f"project: sft\n  api_key: {key}"), ""
        if key not in text:
            raise Unfired("the file does not hold the key")
    path.write_text(text)
    victim = bench.command("train", str(path), *([word] if word else []))
    ending = refused(victim, 78, "api_key")
    path.unlink()
    _require_absent(bench, victim, key)
    return ending


def key_in_value(bench: Bench) -> str:
    """A key stands where another value belongs."""
    key = KEY_FORMS[bench.n % len(KEY_FORMS)].format(secrets.token_hex(20))
    path = bench.folder / "train.yaml"
    path.write_text(as_yaml(bench.config()))
    victim = bench.command("train", str(path), f"wandb.project={key}")
    ending = refused(victim, 78, r"wandb\.project")
    _require_absent(bench, victim, key)
    return ending


def key_in_exception(bench: Bench) -> str:
    """The text of an exception holds the value of a key in the environment."""
    key, name = secrets.token_hex(20), VARIABLES[bench.n % len(VARIABLES)]

    def crash(number: int, journal: Journal) -> None:
        if number == 2:
            journal.fire(name)
            raise ConnectionError(f"401 for https://host/?token={key}")

    victim = bench.train(bench.config(), failpoints.on_call(ENGINE_STEP, crash), environ={name: key})
    require(victim, 1, "Traceback", "ConnectionError")
    _require_absent(bench, victim, key)
    return "S"


def tracker_fails(bench: Bench) -> str:
    """The tracker is down at the start, in the middle or at the end, is slow, or rejects the key."""
    moment = ("init", "log", "finish", "key", "slow", "bug")[bench.n % 6]
    config = bench.config(wandb=WandbConfig(enabled=True))
    victim = bench.train(config, stub_wandb(moment))
    require(victim, 0)
    _alike(bench, config)
    if moment != "slow" and victim.messages.count("wandb") != 1:
        raise Wrong(f"expected one warning: {victim.messages[-600:]}")
    return "S"


def step_goes_back(bench: Bench) -> str:
    """The newest save is damaged, so the run falls back: every point once, attempts told apart."""
    config = bench.finished()
    out = Path(config.out)
    path = bench.rng.choice(sorted(checkpoint(out, NUM_STEPS).iterdir()))
    flip(path, bench.rng.randrange(8 * path.stat().st_size))
    bench.ends_alike(config)
    steps = [record for record in records(out) if record["kind"] == "step"]
    attempts = [(record["step"], record["attempt"]) for record in steps if not record.get("superseded")]
    if attempts != [(step, 1 if step <= 8 else 2) for step in range(1, NUM_STEPS + 1)]:
        raise Wrong(f"attempts {attempts}")
    if [record["step"] for record in steps if record.get("superseded")] != list(range(9, NUM_STEPS + 1)):
        raise Wrong("superseded points are lost")
    return "S"


def stub_wandb(failing: str = "") -> Hook:
    """A hook: a module that stands in for wandb, notes what it gets, and fails at one moment."""

    def install(journal: Journal) -> None:
        module: Any = types.ModuleType("wandb")
        module.Error = type("Error", (Exception,), {})
        num_calls = 0

        def method(name: str) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                nonlocal num_calls
                num_calls += name == "log"
                journal.write("tracker", json.dumps([name, arguments, named], default=repr))
                if name == failing == "init" or (failing == "key" and name == "init"):
                    journal.fire(failing)
                    raise module.Error("401: invalid key" if failing == "key" else "host not reached")
                if name == failing and (name != "log" or num_calls > 5):
                    journal.fire(failing)
                    raise module.Error("host not reached")
                if failing == "bug" and name == "log" and num_calls > 5:
                    journal.fire(failing)
                    raise TypeError("what another version of the library may raise")
                if failing == "slow" and name == "log" and num_calls == 5:
                    journal.fire(failing)
                    time.sleep(1.0)
                return run

            return call

        run = types.SimpleNamespace(**{name: method(name) for name in ("log", "finish", "define_metric")})
        module.Settings, module.init = types.SimpleNamespace, method("init")
        sys.modules["wandb"] = module

    return install


def _require_absent(bench: Bench, victim: Victim, key: str) -> None:
    told = json.dumps(victim.journal.lines())
    if key in told or key[6:] in told:
        raise Wrong("the tracker or the arguments got the key")
    for path in bench.folder.rglob("*"):
        if path.is_file() and key[6:].encode() in path.read_bytes():
            raise Wrong(f"{path.relative_to(bench.folder)} holds the key")


def _alike(bench: Bench, config: TrainConfig) -> None:
    """Compare with the undisturbed run, whose tracker was switched off."""
    wanted = bench.material.straight("fp32").state
    if found := wanted.differences(FinalState.of(Path(config.out), NUM_STEPS)):
        raise Wrong(f"ends otherwise than undisturbed: {'; '.join(found)}")
