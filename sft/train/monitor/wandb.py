"""Weights & Biases, and the only import of its package: one wandb run for all attempts of a run."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft.config.train import TrainConfig
from sft.config.yaml_text import as_values
from sft.errors import ConfigError
from sft.redact import error_text
from sft.storage.json_file import flat
from sft.train.monitor.records import Record

INIT_TIMEOUT_S, FINISH_TIMEOUT_S = 30.0, 15.0
"""How long the run waits for wandb; finishing must fit into the grace period after a SIGTERM."""

log = logging.getLogger(__name__)


class WandbSink:
    """A Weights & Biases run; the same one after every resume."""

    def __init__(self, wandb: Any, config: TrainConfig, run_id: str, attempts: Mapping[str, int]) -> None:
        """`attempts` gives the step after which each started: points beyond the start of the next are superseded."""
        # No source code, git remotes, arguments or console text are uploaded: they may hold secrets.
        settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            silent=True,
            login_timeout=INIT_TIMEOUT_S,
            init_timeout=INIT_TIMEOUT_S,
            finish_timeout=FINISH_TIMEOUT_S,
        )

        def init(mode: str, resume: str | None) -> Any:
            return wandb.init(
                project=config.wandb.project,
                mode=mode,
                id=run_id,
                name=Path(config.out).name,
                resume=resume,
                dir=config.out,
                config={**as_values(config), "attempts": attempts},
                settings=settings,
            )

        try:
            self._run = init(config.wandb.mode, "allow" if config.wandb.mode == "online" else None)
        except Exception as error:  # no network, a wrong key, a helper process that crashes
            if config.wandb.mode == "offline":
                raise
            log.warning(
                "wandb cannot be reached, continuing offline (`wandb sync` sends it later): %s",
                error_text(error, os.environ),
            )
            self._run = init("offline", None)
        # Own step axis: wandb's built-in one cannot go back when a resumed run repeats steps.
        self._run.define_metric("*", step_metric="optimizer_step")

    def write(self, record: Record) -> None:
        values = {
            f"{record['kind']}/{name}": value for name, value in flat(record, "/") if name not in ("kind", "step")
        }
        self._run.log({**values, "optimizer_step": record["step"]})

    def sync(self) -> None:
        """Nothing to do: wandb writes by itself."""

    def close(self) -> None:
        self._run.finish()


def installed_wandb() -> Any:
    """The package.

    Raises: ConfigError if it is not installed.
    """
    # wandb's own error reports contain tracebacks, and at exit they wait for a server that may not answer.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            "wandb.enabled: wandb is not installed", hint="in the project's folder: pip install -e '.[wandb]'"
        ) from None
    return wandb
