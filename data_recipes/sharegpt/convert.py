"""ShareGPT: conversations with ChatGPT, as pages of its site (HTML) or cleaned to Markdown by others."""

import re
from collections.abc import Mapping
from itertools import dropwhile

from bs4 import BeautifulSoup, Tag
from bs4.exceptions import ParserRejectedMarkup
from markdownify import MarkdownConverter

from sft.chat.conversation import Conversation, Drop, Message, Reason, Role, clean_text, from_turns, wrong_schema

_ROLES: dict[str, Role] = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "bing", "bard"), "assistant"),
}

# A reply copied from ChatGPT's page is its `markdown` div, with enclosing divs at most. A reply that only mentions HTML
# never starts like this.
_PAGE = re.compile(r'\s*(?:<div class="[^"]*">\s*){0,8}<div class="(?:[^"]* )?markdown[ "]')

# Buttons of the page and of browser extensions that were copied with the text.
_COPY_COUNT = re.compile(r"Copy\s?\d+ chars / \d+ words")
_COPY_CODE_FENCE = re.compile(r"```\s?([\w+#.-]*?)Copy code\s?")
_COPY_CODE_LINE = re.compile(r"^Copy code\n", re.MULTILINE)
_TRAILING_BUTTONS = ("Share Prompt", "지금 번역하기")  # the second is a translation extension's "translate now"
# "2 / 3" after the user's text: which of its versions is shown. Unless it is the last one, it counts as a version
# counter only right after a word without a space, or on its own line: "What is 1 / 2" is kept.
_VERSION = re.compile(r"(?<![\d/.])(\d{1,3}) / \1\Z|(?:\n|(?<=[^\W\d_])|(?<=[.?!\"')\]]))\d{1,2} / \d{1,2}\Z")

# Markdown converters of that time escaped every _ and * outside code as \_ and \*.
_ESCAPED = re.compile(r"\\([_*])")
_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", re.DOTALL)

# What the site showed in place of a reply.
_SERVICE_MESSAGE = re.compile(
    r"\W*(?:too many requests in|you.ve reached (?:our|the) (?:limit|current usage)|an error occurred\. (?:if|either)"
    r"|something went wrong\. if|hmm\W+something seems to have gone wrong|the server (?:had|experienced) an error"
    r"|our systems are (?:a bit|currently) busy|we.re experiencing exceptionally high demand|conversation not found"
    r"|only one message at a time|unable to load conversation|this content may violate our"
    r"|the message you submitted was too long|your authentication token has expired|there was an error generating"
    r"|(?:network error|request timed out|internal server error)\W*\Z)",
    re.IGNORECASE,
)


def convert(row: Mapping[str, object]) -> Conversation | Drop:
    """The conversation from the first question to the last complete exchange before an empty or service message."""
    entries = _entries(row.get("conversations"))
    if entries is None:
        return wrong_schema(row, "conversations as a list of objects with from and value as text")
    entries = [(speaker, text) for speaker, text in entries if speaker != "system"]
    is_page = any(_PAGE.match(text) for speaker, text in entries if _ROLES.get(speaker) == "assistant")
    turns: list[Message] = []
    for number, (speaker, text) in enumerate(entries):
        role = _ROLES.get(speaker)
        if role is None:
            return Drop(Reason.NOT_ALTERNATING, f"turn {number} is by {clean_text(speaker)[:40]!r}")
        markdown = _user_text(text, is_page) if role == "user" else _assistant_text(text, is_page)
        if markdown is None:
            return Drop(Reason.WRONG_SCHEMA, f"turn {number} holds HTML that cannot be read")
        turns.append(Message(role, markdown))
    return _whole_exchanges(list(dropwhile(lambda turn: turn.role == "assistant", turns)))


def _entries(value: object) -> list[tuple[str, str]] | None:
    """The (speaker, text) pairs of a row, or None if it holds anything else."""
    entries = []
    for entry in value if isinstance(value, list) else [None]:
        speaker, text = (entry.get("from"), entry.get("value")) if isinstance(entry, Mapping) else (None, None)
        if not isinstance(speaker, str) or not isinstance(text, str):
            return None
        entries.append((speaker.strip().lower(), text))
    return entries


def _whole_exchanges(turns: list[Message]) -> Conversation | Drop:
    kept: list[Message] = []
    end: Reason | None = None
    for turn in turns:
        end = _end(turn)
        if end is not None:
            break
        kept.append(turn)
    if kept and kept[-1].role == "user":
        kept.pop()
    return Drop(end, "the first exchange") if end and not kept else from_turns(kept)


def _end(turn: Message) -> Reason | None:
    """Why the conversation ends before this turn, or None if it continues."""
    if not any(char.isprintable() and not char.isspace() for char in turn.text):
        return Reason.EMPTY_USER if turn.role == "user" else Reason.EMPTY_ASSISTANT
    if turn.role == "assistant" and len(turn.text) < 400 and _SERVICE_MESSAGE.match(turn.text):
        return Reason.SERVICE_MESSAGE
    return None


def _user_text(text: str, is_page: bool) -> str:
    """The user's text without buttons; raw pages hold it as typed, cleaned rows escape it even inside code."""
    text = _without_buttons(clean_text(text))
    while text.endswith(_TRAILING_BUTTONS):
        for button in _TRAILING_BUTTONS:
            text = text.removesuffix(button).rstrip()
    if " / " in text[-12:]:
        text = _VERSION.sub("", text)
    return clean_text(_ESCAPED.sub(r"\1", text) if "\\" in text and not is_page else text)


def _assistant_text(text: str, is_page: bool) -> str | None:
    if _PAGE.match(text):
        return _page_to_markdown(text)
    text = _without_buttons(clean_text(text))
    if is_page or "\\" not in text:
        return text
    parts = _CODE.split(text)
    parts[::2] = [_ESCAPED.sub(r"\1", part) for part in parts[::2]]
    return clean_text("".join(parts))


def _without_buttons(text: str) -> str:
    if "Copy" not in text:
        return text
    text = _COPY_CODE_FENCE.sub(r"```\1\n", _COPY_COUNT.sub("", text))
    return _COPY_CODE_LINE.sub("", text)


# ------------------------------------------------------------------------------------------ pages of ChatGPT


class _PageConverter(MarkdownConverter):
    def convert_pre(self, el: Tag, text: str, **_: object) -> str:
        """A fence longer than any inside the code, so that code about Markdown does not end it early."""
        longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
        fence = "`" * (longest + 1)
        return f"\n\n{fence}{el.get('data-language', '')}\n{text.strip(chr(10))}\n{fence}\n\n"


_CONVERTER = _PageConverter(
    heading_style="ATX", bullets="-", escape_asterisks=False, escape_underscores=False, escape_misc=False
)
_TAGS = re.compile(
    r"p|div|span|a|ul|ol|li|h[1-6]|pre|code|strong|b|em|i|del|s|blockquote|br|hr|img|su[bp]|table|thead|tbody|t[rhd]"
)
_MAX_DEPTH = 100  # markdownify recurses; ChatGPT's pages nest some 15 tags
_CODE_COLOUR = re.compile(r'<span class="hljs-[^"]*">')


def _page_to_markdown(html: str) -> str | None:
    try:
        # Half of a page's tags only colour code; without them, conversion takes two thirds of the time.
        soup = BeautifulSoup(_CODE_COLOUR.sub("", html), "html.parser")
    except (ParserRejectedMarkup, ValueError):  # ValueError: a character number of thousands of digits
        return None
    for button in soup.find_all(["button", "svg", "script", "style"]):
        button.decompose()
    if "katex" in html:
        _restore_formulas(soup)
    for pre in soup.find_all("pre"):
        _flatten_code(pre)
    for tag in soup.find_all(True):
        if sum(1 for _ in tag.parents) > _MAX_DEPTH:
            return None
        _simplify(tag)
    return clean_text(_CONVERTER.convert_soup(soup))


def _restore_formulas(soup: BeautifulSoup) -> None:
    """Replace formulas, which a page holds as MathML, TeX and rendered text, by their TeX source."""
    for formula in soup.find_all(class_="katex"):
        source = formula.find("annotation")
        if source is not None:
            mark = "$$" if formula.find_parent(class_="katex-display") else "$"
            formula.replace_with(f"{mark}{source.get_text().strip()}{mark}")


def _flatten_code(pre: Tag) -> None:
    """Replace a code box by its plain code; the language is in the box's title or in the code's class."""
    code = pre.find("code")
    title = pre.find("span")
    named = re.search(r"language-([\w+#.-]+)", " ".join(code.get_attribute_list("class")) if code else "")
    if title is not None and title.find_parent("code") is None:
        language = title.get_text().strip()
    else:
        language = named.group(1) if named else ""
    text = (code or pre).get_text()
    pre.clear()
    pre.append(text)
    pre["data-language"] = language if re.fullmatch(r"[\w+#.-]+", language) else ""


def _simplify(tag: Tag) -> None:
    """Remove tags and attributes that a real page never has and markdownify would trust; keep a bare URL bare."""
    kept = ("href", "src", "alt", "data-language")
    start = tag.get("start")
    tag.attrs = {name: value for name, value in tag.attrs.items() if name in kept}
    if isinstance(start, str) and re.fullmatch(r"[0-9]{1,4}", start):
        tag["start"] = start
    if not _TAGS.fullmatch(tag.name) or (tag.name == "a" and tag.get_text() == tag.get("href")):
        tag.unwrap()
