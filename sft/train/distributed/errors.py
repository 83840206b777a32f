"""Turn the errors that collectives raise when a rank has died into PeerError."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed import DistError

from sft.errors import PeerError
from sft.train.run_layout import STACKS

GLOO = re.compile(r"\bgloo\b|connection (?:closed|reset|refused)|timed out waiting|broken pipe|NCCL", re.IGNORECASE)
"""Messages of gloo, which has no error type of its own, when it lost a rank or a wait timed out."""


@contextmanager
def as_peer_errors() -> Iterator[None]:
    """Turn the error of a collective that lost a rank into a PeerError with a next step.

    Raises: PeerError; no collective works after it, so the process must exit.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        raise PeerError(
            f"lost another rank: {_gist(error)}",
            hint=f"the rank that failed first reports the reason in its own log or in {STACKS}/ of the run folder; "
            "the same command continues from the newest checkpoint",
        ) from error


def is_lost_peer(error: RuntimeError) -> bool:
    """True if a collective failed because of another process."""
    return isinstance(error, DistError) or GLOO.search(str(error)) is not None


def _gist(error: RuntimeError) -> str:
    """The first sentence of the error, without the source location in the library."""
    sentence = str(error).strip().split("\n")[0].split(". ")[0]
    return re.sub(r"^(?:\[[^\]]*\]\s*)+:?\s*", "", sentence) or type(error).__name__
