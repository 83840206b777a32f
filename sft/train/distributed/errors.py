"""What a collective says when another rank has died, in words that help."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed import DistError

from sft.errors import PeerError
from sft.train.run_layout import STACKS

GLOO = re.compile(r"\bgloo\b|connection (?:closed|reset|refused)|timed out waiting|broken pipe|NCCL", re.IGNORECASE)
"""What gloo, which has no error type of its own, says when it lost a rank or waited for one too long."""


@contextmanager
def as_peer_errors() -> Iterator[None]:
    """Turn what a collective raises for a lost rank into an error that a user can act on.

    Raises: PeerError; after it no collective can work, so the process only has to leave.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        raise PeerError(
            f"lost another rank: {_gist(error)}",
            hint=f"the rank that went first says why in its own log or in {STACKS}/ of the run folder; "
            "the same command goes on from the newest checkpoint",
        ) from error


def is_lost_peer(error: RuntimeError) -> bool:
    """True if another process, and not the work of this one, is why a collective failed."""
    return isinstance(error, DistError) or GLOO.search(str(error)) is not None


def _gist(error: RuntimeError) -> str:
    """Its first sentence, without the place in the library that raised it."""
    sentence = str(error).strip().split("\n")[0].split(". ")[0]
    return re.sub(r"^(?:\[[^\]]*\]\s*)+:?\s*", "", sentence) or type(error).__name__
