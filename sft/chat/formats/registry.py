"""The chat formats by name; a new one is a file beside this and an entry here."""

from sft.chat.formats.base import ChatFormat
from sft.chat.formats.stablelm import STABLELM
from sft.errors import ConfigError

FORMATS = {chat_format.name: chat_format for chat_format in (STABLELM,)}
DEFAULT = STABLELM.name
"""The format of shards and checkpoints that name none: they are older than the choice."""


def format_named(name: str | None) -> ChatFormat:
    """The format of this name; without a name the default.

    Raises: ConfigError if there is none.
    """
    found = FORMATS.get(name or DEFAULT)
    if found is None:
        raise ConfigError(f"no chat format {name!r}", hint=f"this program has {', '.join(FORMATS)}")
    return found
