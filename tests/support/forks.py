"""Makes forks of a test process safe to use PyTorch in, from the moment this module is imported.

The first thread of a fork that computes replaces the thread pool of its parent, and PyTorch does not guard that: a
second thread that computes in the same microseconds finds no pool ("Invalid thread pool!"). Forks of tests load
checkpoints in several threads, as transformers does; so a fork replaces the pool before it has a second thread. What
users run does not fork.
"""

import os
import sys


def renew_thread_pool() -> None:
    """Let PyTorch, if it is loaded, replace the thread pool that it has from the parent."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads"):
        torch.set_num_threads(torch.get_num_threads())


os.register_at_fork(after_in_child=renew_thread_pool)
