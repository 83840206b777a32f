"""The chat formats by name; to add one, add a file beside this one and an entry here."""

from sft.chat.formats.base import ChatFormat
from sft.chat.formats.stablelm import STABLELM
from sft.errors import ConfigError

FORMATS = {chat_format.name: chat_format for chat_format in (STABLELM,)}
DEFAULT = STABLELM.name
"""The format of shards and checkpoints without a format name, which were written before formats could be chosen."""


def format_named(name: str | None) -> ChatFormat:
    """The format of this name, or the default if `name` is None.

    Raises: ConfigError if there is no format of this name.
    """
    found = FORMATS.get(name or DEFAULT)
    if found is None:
        raise ConfigError(f"no chat format {name!r}", hint=f"this program has {', '.join(FORMATS)}")
    return found
