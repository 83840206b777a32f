"""The version of sft, recorded in everything that it writes, and the versions of its packages."""

import platform
from importlib import metadata

VERSION = "0.1.0"


def version_of(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions_of(*packages: str) -> dict[str, str]:
    """The versions of Python and of these packages, as recorded in everything that sft writes."""
    return {"python": platform.python_version(), **{name: version_of(name) or "not installed" for name in packages}}
