"""What is written records which versions it was made with."""

import platform

import numpy as np

from sft.version import version_of, versions_of


def test_versions_are_those_that_are_installed() -> None:
    found = versions_of("numpy", "no-such-package")
    assert found == {"python": platform.python_version(), "numpy": np.__version__, "no-such-package": "not installed"}
    assert version_of("no-such-package") is None
