"""`sft chat`: a conversation with a checkpoint in the terminal."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console

from sft.chat.conversation import Message
from sft.chat.encode import encode_prompt
from sft.config.inference import ChatConfig
from sft.errors import DataError
from sft.inference.answer import answer
from sft.inference.load import LoadedModel, load
from sft.train.distributed.world import choose_device
from sft.train.engine.precision import autocast

HELP = "/system TEXT changes the system text, /reset forgets the conversation, /exit or Ctrl-D ends"


def talk(checkpoint: Path, config: ChatConfig, console: Console, lines: Iterator[str] | None = None) -> None:
    """Answer line by line, remembering the conversation, until the input ends."""
    device = choose_device(config.device)
    loaded = load(checkpoint, device)
    console.print(f"{loaded.folder}\n{HELP}", highlight=False, markup=False, soft_wrap=True)
    system = loaded.tokenizer.format.default_system if config.system is None else config.system
    messages: list[Message] = []
    for line in lines if lines is not None else _typed(console):
        command, _, rest = line.strip().partition(" ")
        if command == "/exit":
            return
        if command in ("/reset", "/system"):
            system = rest or system
            messages = []
            console.print("(a new conversation)")
        elif command.startswith("/"):
            console.print(HELP)
        elif command:
            asked = _fitting(loaded, [*messages, Message("user", line.strip())], system, config, console.print)
            try:
                with torch.inference_mode(), autocast(device, config.precision):
                    text = _stream(answer(loaded, asked, system, config.generation), console)
            except DataError as error:  # a message too long for the model does not end the conversation
                console.print(str(error), markup=False)
            else:
                messages = [*asked, Message("assistant", text)]


def _typed(console: Console) -> Iterator[str]:
    """Lines from the keyboard, or from a pipe."""
    if not sys.stdin.isatty():
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
        yield from sys.stdin
        return
    while True:
        try:
            yield console.input("[bold cyan]you> [/]")
        except EOFError:
            return


def _stream(pieces: Iterator[str], console: Console) -> str:
    text = ""
    for piece in pieces:
        text += piece
        console.print(piece, end="", markup=False, highlight=False, style="green", soft_wrap=True)
    console.print()
    return text


def _fitting(
    loaded: LoadedModel, messages: list[Message], system: str, config: ChatConfig, say: Callable[[str], None]
) -> list[Message]:
    """The newest messages that leave room for an answer; the oldest exchanges are forgotten."""
    limit = loaded.model.config.max_positions - min(
        config.generation.max_new_tokens, loaded.model.config.max_positions // 2
    )
    first = 0
    while first + 2 < len(messages) and len(encode_prompt(messages[first:], system, loaded.tokenizer)) > limit:
        first += 2
    if first:
        say(f"(the model forgets what was said first: {first // 2} of the exchanges no longer fit)")
    return messages[first:]
