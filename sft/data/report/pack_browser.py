"""Some packs of a build as text, chosen so that every source is shown.

T = tokens of one document, N = documents of all packs of a split, P = packs of a split.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft.chat.roles import roles
from sft.chat.tokenizer import ChatTokenizer
from sft.chat.turns import marker_starts
from sft.data.shards import Pack, Shards, Split

MAX_BYTES = 1_200_000
"""Approximate limit of the text of all packs; every source is shown at least once, even beyond it."""
TOKEN_BYTES, DOCUMENT_BYTES = 6, 280
"""Approximate size of a token and of a document in the page."""
BORDER = "\x7f"
"""Separator between tokens; it does not occur in visible text."""

_TAG = "t"
_CONTROLS = ((0, 0x09), (0x0B, 0x20), (0x7F, 0xA0), (0x2028, 0x202F), (0x2066, 0x206A), (0xD800, 0xE000))
_VISIBLE = {code: f"\\u{code:04x}" for start, stop in _CONTROLS for code in range(start, stop)}


def visible(text: str) -> str:
    """The text with \\uXXXX in place of every character that controls a terminal or the writing direction."""
    return text.translate(_VISIBLE)


@dataclass(frozen=True)
class Contents:
    """The documents of each pack of a split."""

    doc_ids_N: NDArray[Any]
    num_documents_P: NDArray[np.int64]
    num_tokens_P: NDArray[np.int64]

    @classmethod
    def of(cls, split: Split) -> "Contents":
        """Read the document lists of all packs."""
        doc_ids_N, lengths_N, num_documents_P = split.placed
        ends = np.append(0, np.cumsum(lengths_N))
        return cls(doc_ids_N, num_documents_P, np.diff(ends[np.append(0, np.cumsum(num_documents_P))]))


def choose(contents: Contents, source_of_document: NDArray[Any], packs_per_source: int, max_bytes: int) -> list[int]:
    """Choose packs: for every source some that hold it, spread over the split; fewer if they are long."""
    num_packs = len(contents.num_tokens_P)
    pack_of_N = np.repeat(np.arange(num_packs), contents.num_documents_P)
    pairs = np.unique(source_of_document[contents.doc_ids_N].astype(np.int64) * num_packs + pack_of_N)
    sources = np.split(pairs % max(1, num_packs), np.flatnonzero(np.diff(pairs // max(1, num_packs))) + 1)
    bytes_P = TOKEN_BYTES * contents.num_tokens_P + DOCUMENT_BYTES * contents.num_documents_P
    count = max(1, min(packs_per_source, num_packs))
    while True:
        chosen = np.unique(np.concatenate([spread(packs, count) for packs in sources]))
        if count == 1 or bytes_P[chosen].sum() <= max_bytes:
            return [int(index) for index in chosen]
        count -= max(1, count // 8)


def spread(items: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The first, the last, and others at equal distances between them."""
    count = min(count, len(items))
    return items[np.arange(count) * (len(items) - 1) // max(1, count - 1)]


class PackTexts:
    """Decodes packs for the report's page."""

    def __init__(self, shards: Shards, tokenizer: ChatTokenizer, packs: Iterable[Pack]) -> None:
        self._shards, self._table, self._tokenizer = shards, shards.documents, tokenizer
        ids = np.unique(np.concatenate([np.zeros(0, np.int64), *(pack.input_ids_T for pack in packs)])).tolist()
        self._spelling: dict[int, str] = dict(zip(ids, tokenizer.decode([[token_id] for token_id in ids]), strict=True))
        self._visible = {token_id: visible(text) for token_id, text in self._spelling.items()}
        self._partial = {token_id for token_id, text in self._spelling.items() if "\ufffd" in text}
        """Ids that may be a part of a character."""

    def facts(self, index: int, pack: Pack) -> dict[str, Any]:
        """One pack as the page's script reads it."""
        documents = [self._document(doc_id, pack, place) for doc_id, place in pack.documents()]
        padding = len(pack.input_ids_T) - pack.num_tokens
        return {"index": index, "padding": padding, "supervised": pack.num_supervised, "documents": documents}

    def _document(self, doc_id: int, pack: Pack, place: slice) -> dict[str, Any]:
        table, mask_T = self._table, pack.loss_mask_T[place]
        return {
            "source": int(table.source[doc_id]),
            "file": int(table.file[doc_id]),
            "row": int(table.row[doc_id]),
            "piece": int(table.piece[doc_id]),
            "turn": int(table.first_turn[doc_id]),
            "uses": int(table.uses[doc_id]),
            "truncated": bool(table.truncated[doc_id]),
            "tokens": len(mask_T),
            "supervised": int(np.count_nonzero(mask_T)),
            "runs": list(self._runs(doc_id, pack.input_ids_T[place], mask_T.tolist())),
        }

    def _runs(self, doc_id: int, ids_T: NDArray[Any], mask: Sequence[int]) -> Iterator[str]:
        """Runs of tokens of one role and mask value: the role's first letter, a capital with loss, and the tokens."""
        starts = self._shards.turn_starts(doc_id, ids_T, self._tokenizer)
        letters = [role[0] for role in roles(ids_T, starts, self._tokenizer)]
        for begin, start in zip(marker_starts(starts, self._tokenizer), starts.tolist(), strict=True):
            letters[begin:start] = _TAG * (start - begin)
        ids = ids_T.tolist()
        kinds = (letter.upper() if loss else letter for letter, loss in zip(letters, mask, strict=True))
        for kind, members in itertools.groupby(zip(kinds, ids, strict=True), key=lambda item: item[0]):
            yield kind + self._spelled([token_id for _, token_id in members])

    def _spelled(self, ids: Sequence[int]) -> str:
        """The text of some tokens with borders between them; without borders if single tokens do not add up to it."""
        if self._partial.isdisjoint(ids):
            return BORDER.join([self._visible[token_id] for token_id in ids])
        (text,) = self._tokenizer.decode([ids])
        parts: list[str] = []
        for is_part, group in itertools.groupby(ids, key=self._partial.__contains__):
            # Tokens that are parts of characters are decoded together.
            members = list(group)
            parts += self._tokenizer.decode([members]) if is_part else [self._spelling[item] for item in members]
        return BORDER.join(map(visible, parts)) if "".join(parts) == text else visible(text)
