"""A row of the fault matrix."""

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.faults.sandbox import Bench


@dataclass(frozen=True)
class Case:
    """One kind of fault: what is done, what must come of it, and how often it is tried."""

    id: str
    text: str
    promise: str
    """Which of the twelve promises of the README beside this file it tests."""
    inject: Callable[[Bench], str] | None
    """Returns how it ended: `S`, or `R` with an exit code; raises a Failure. None where it cannot be tried here."""
    expect: tuple[str, ...]
    """The endings that are right."""
    short: int = 1
    """Injections in the short run."""
    long: int = 0
    """Injections in the long run."""
    where: str = "c"
    """c one CPU process, d several, g a GPU, s a scheduler."""
    reason: str = ""
    """Why it is not, or not wholly, tried here."""
    files: tuple[str, ...] = ()
    """Tests that plant it instead."""
    needs: tuple[str, ...] = field(default=())
    """Attributes of Material to be made before the case runs."""

    @property
    def family(self) -> str:
        return self.id[0]


def absent(case_id: str, text: str, where: str, reason: str) -> Case:
    """A kind that this suite does not try, and why."""
    return Case(case_id, text, "", None, (), 0, 0, where, reason)
