"""What a build promises is proven again from its bytes, even if its hashes are true."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sft.chat.tokenizer import ChatTokenizer
from sft.data.build.build import build
from sft.data.documents import DOCUMENTS, DocumentTable, write_documents
from sft.data.inspect.verify import verify
from sft.data.manifest import BuildManifest
from sft.data.shards import KIND, SCHEMA_VERSION, Pack, Shards, is_content, write_shard
from sft.errors import DataError
from sft.storage.manifest import write_manifest
from tests.support.packs import laid

TALKS = [
    [f"question {number}?", f"answer {number * 7}", "and?", "more."][: 2 + 2 * (number % 2)] for number in range(40)
]
LONG = ["question?", "a very long answer " * 20]
LAYOUTS = {
    "published": [],
    "no end": ["end_token=false"],
    "all": ["supervise=all"],
    "as released": ["end_token=false", "supervise=all"],
    "truncated": ["seq_len=24", "sources.talks.too_long=truncate"],
    "repeated": ["sources.talks.epochs=2.5"],
}


@pytest.fixture
def make(write_mixture: Callable[..., Any]) -> Callable[..., Path]:
    raw = write_mixture(talks=[*TALKS, LONG])
    return lambda *arguments: build(raw.config(*arguments), raw.recipes).folder


@pytest.mark.parametrize("arguments", LAYOUTS.values(), ids=LAYOUTS)
def test_a_build_passes_whatever_its_layout(arguments: list[str], make: Callable[..., Path]) -> None:
    folder = make(*arguments)
    table = Shards.open(folder).documents
    said = verify(folder)
    assert f"{len(table)} documents" in said
    assert f"{int(table.num_tokens.sum()):,} tokens" in said
    assert said.startswith(f"{len(list(folder.iterdir())) - 1} files")


@pytest.mark.parametrize("name", ["documents.arrow", "README.md", "tokenizer.json", "quarantine.jsonl"])
def test_a_changed_file_is_refused(name: str, make: Callable[..., Path]) -> None:
    folder = make()
    content = (folder / name).read_bytes() or b" "
    (folder / name).write_bytes(content[:-1] + b"#")
    with pytest.raises(DataError, match=name):
        verify(folder)


def forge(folder: Path, change: Callable[[list[Pack], ChatTokenizer], object]) -> None:
    """Rewrite the training packs after a change, and the manifest so that every hash is true."""
    shards = Shards.open(folder)
    split = shards.split("train")
    packs = [
        replace(split[n], input_ids_T=split[n].input_ids_T.copy(), loss_mask_T=split[n].loss_mask_T.copy())
        for n in range(len(split))
    ]
    change(packs, ChatTokenizer.load(shards.tokenizer_path))
    manifest = shards.manifest
    (shard,) = manifest.splits["train"].shards
    (folder / shard.file).unlink()
    write_shard(folder / shard.file, laid(packs))
    rehash(folder, manifest)


def rehash(folder: Path, manifest: BuildManifest) -> None:
    write_manifest(folder, KIND, SCHEMA_VERSION, manifest.to_json(), is_content)


def retold(manifest: BuildManifest, group: str, part: str, **facts: Any) -> BuildManifest:
    """The manifest with other facts about one of its sources or splits."""
    parts = getattr(manifest, group)
    return replace(manifest, **{group: {**parts, part: replace(parts[part], **facts)}})


def flip_mask(packs: list[Pack], _: ChatTokenizer) -> None:
    packs[0].loss_mask_T[2] ^= 1


def move_mask(packs: list[Pack], _: ChatTokenizer) -> None:
    """Every count stays as it was."""
    mask_T = packs[0].loss_mask_T
    mask_T[np.flatnonzero(mask_T)[0]] = 0
    mask_T[2] = 1


def put_tag_into_text(packs: list[Pack], tokenizer: ChatTokenizer) -> None:
    packs[0].input_ids_T[2] = tokenizer.id_of("<|USER|>")


def remove_end(packs: list[Pack], _: ChatTokenizer) -> None:
    packs[0].input_ids_T[int(packs[0].doc_lengths_N[0]) - 1] = 40


def learn_padding(packs: list[Pack], _: ChatTokenizer) -> None:
    last = next(pack for pack in packs if pack.num_tokens < len(pack.input_ids_T))
    last.loss_mask_T[-1] = 1


def text_in_the_tail(packs: list[Pack], _: ChatTokenizer) -> None:
    last = next(pack for pack in packs if pack.num_tokens < len(pack.input_ids_T))
    last.input_ids_T[-1] = 40


def move_border(packs: list[Pack], _: ChatTokenizer) -> None:
    number = next(n for n, pack in enumerate(packs) if len(pack.doc_lengths_N) > 1)
    lengths = packs[number].doc_lengths_N.copy()
    lengths[0] -= 1
    lengths[1] += 1
    packs[number] = replace(packs[number], doc_lengths_N=lengths)


def miscount(packs: list[Pack], _: ChatTokenizer) -> None:
    packs[0] = replace(packs[0], num_supervised=packs[0].num_supervised + 1)
    packs[1] = replace(packs[1], num_supervised=packs[1].num_supervised - 1)


def swap_documents(packs: list[Pack], _: ChatTokenizer) -> None:
    packs[0] = replace(packs[0], doc_ids_N=packs[1].doc_ids_N[: len(packs[0].doc_ids_N)])


def repeat_a_pack(packs: list[Pack], _: ChatTokenizer) -> None:
    packs[1] = packs[0]


def too_long(packs: list[Pack], _: ChatTokenizer) -> None:
    packs[0] = replace(packs[0], doc_lengths_N=np.full(len(packs[0].doc_ids_N), 65, np.uint16))


def change_word(packs: list[Pack], tokenizer: ChatTokenizer) -> None:
    """Tags, mask and every count stay as they were."""
    ids_T = packs[0].input_ids_T
    word = int(np.flatnonzero(~tokenizer.is_control[ids_T])[0])
    ids_T[word] = (set(range(tokenizer.num_ids)) - {*tokenizer.control_ids, int(ids_T[word])}).pop()


FORGERIES: dict[str, tuple[Callable[[list[Pack], ChatTokenizer], object], str]] = {
    "a flipped mask value": (flip_mask, "train pack 0: document .*wrong_turn_ends"),
    "a moved mask value": (move_mask, "1 violations.*\n.*train pack 0: document .*wrong_turn_ends"),
    "a tag in the text": (put_tag_into_text, "train pack 0: document .*forged_control_token"),
    "a missing end": (remove_end, "train pack 0: document .*forged_control_token"),
    "another word": (change_word, "1 violations.*\n.*train pack 0: document .*not those of the document table"),
    "loss on padding": (learn_padding, "the tail is not unsupervised padding"),
    "text in the tail": (text_in_the_tail, "the tail is not unsupervised padding"),
    "a moved border": (move_border, "forged_control_token"),
    "wrong counts": (miscount, "num_supervised is not the sum"),
    "swapped documents": (swap_documents, "documents are not packed as often as the document table says"),
    "a repeated pack": (repeat_a_pack, "documents are not packed as often as the document table says"),
    "an overfull pack": (too_long, "expected at most 64"),
}


@pytest.mark.parametrize(("change", "complaint"), FORGERIES.values(), ids=FORGERIES)
def test_a_forgery_with_true_hashes_is_refused(
    change: Callable[[list[Pack], ChatTokenizer], object], complaint: str, make: Callable[..., Path]
) -> None:
    folder = make()
    forge(folder, change)
    with pytest.raises(DataError, match=complaint) as caught:
        verify(folder)
    assert "violations of the contract" in str(caught.value)
    assert str(folder) in str(caught.value)


def test_the_forger_s_tool_changes_nothing_by_itself(make: Callable[..., Path]) -> None:
    folder = make()
    before = (folder / "manifest.json").read_bytes()
    forge(folder, lambda *_: None)
    assert (folder / "manifest.json").read_bytes() == before
    verify(folder)


def test_two_documents_of_equal_counts_that_changed_places_are_named(make: Callable[..., Path]) -> None:
    folder = make()
    table = Shards.open(folder).documents
    trained = np.flatnonzero(~table.held_out)
    counts = list(zip(table.num_tokens[trained].tolist(), table.num_supervised[trained].tolist(), strict=True))
    most = max(counts, key=counts.count)
    here, there = [int(trained[n]) for n, count in enumerate(counts) if count == most][:2]

    def swap(packs: list[Pack], _: ChatTokenizer) -> None:
        other = {here: there, there: here}
        for number, pack in enumerate(packs):
            ids = np.array([other.get(doc_id, doc_id) for doc_id in pack.doc_ids_N.tolist()], np.uint32)
            packs[number] = replace(pack, doc_ids_N=ids)

    forge(folder, swap)
    with pytest.raises(DataError, match="2 violations") as caught:
        verify(folder)
    for document in (here, there):
        assert f"document {document}: its tokens or loss mask are not those" in str(caught.value)


def retell(folder: Path, change: Callable[[DocumentTable], DocumentTable]) -> None:
    """Rewrite the document table after a change, and the manifest so that every hash is true."""
    shards = Shards.open(folder)
    manifest, table = shards.manifest, change(shards.documents)
    (folder / DOCUMENTS).unlink()
    write_documents(folder / DOCUMENTS, table)
    rehash(folder, manifest)


def told_of_its_first_held_out(table: DocumentTable, column: str) -> DocumentTable:
    """The table with a value of the first held-out document copied to the first one that is trained on."""
    values = getattr(table, column).copy()
    values[np.flatnonzero(~table.held_out)[0]] = values[np.flatnonzero(table.held_out)[0]]
    return replace(table, **{column: values})


WRONG_TABLES: dict[str, tuple[Callable[[DocumentTable], DocumentTable], str]] = {
    "no change": (lambda table: table, ""),
    "token counts": (lambda table: replace(table, num_tokens=table.num_tokens + 1), "its counts differ"),
    "supervised counts": (lambda table: replace(table, num_supervised=table.num_supervised - 1), "its counts differ"),
    "content": (lambda table: replace(table, content=table.content ^ 1), "not those of the document table"),
    "splits": (lambda table: replace(table, held_out=~table.held_out), "in the wrong split"),
    "cut documents": (lambda table: replace(table, truncated=~table.truncated), "forged_control_token"),
    "uses": (lambda table: replace(table, uses=table.uses + 1), "documents are not packed as often"),
    "conversations": (
        lambda table: told_of_its_first_held_out(table, "digest"),
        "1 held-out documents have conversations that are in training as well",
    ),
    "first questions": (
        lambda table: told_of_its_first_held_out(table, "group"),
        "1 held-out documents have first questions that are in training as well",
    ),
}


@pytest.mark.parametrize(("change", "complaint"), WRONG_TABLES.values(), ids=WRONG_TABLES)
def test_a_wrong_document_table_is_refused(
    change: Callable[[DocumentTable], DocumentTable], complaint: str, make: Callable[..., Path]
) -> None:
    folder = make()
    retell(folder, change)
    if not complaint:
        verify(folder)
        return
    with pytest.raises(DataError, match=complaint):
        verify(folder)


COUNTS = [
    *(("splits", "train", name) for name in ("tokens", "supervised_tokens", "documents", "density")),
    *(("sources", "talks", name) for name in ("tokens", "supervised_tokens", "documents", "held_out_documents")),
    ("sources", "talks", "rows_read"),
]


@pytest.mark.parametrize("place", COUNTS, ids="-".join)
def test_a_wrong_count_in_the_manifest_is_refused(place: tuple[str, str, str], make: Callable[..., Path]) -> None:
    folder = make()
    manifest = Shards.open(folder).manifest
    group, part, name = place
    count = getattr(getattr(manifest, group)[part], name)
    rehash(folder, retold(manifest, group, part, **{name: count + 1}))
    with pytest.raises(DataError, match=rf"{part}: {name} is .* in the manifest"):
        verify(folder)


def test_a_wrong_count_of_reasons_in_the_manifest_is_refused(make: Callable[..., Path]) -> None:
    folder = make()
    manifest = Shards.open(folder).manifest
    assert manifest.sources["talks"].reasons == {"too_long": 1}
    rehash(folder, retold(manifest, "sources", "talks", reasons={"too_long": 2}))
    with pytest.raises(DataError, match="talks: reasons is"):
        verify(folder)


def test_another_tokenizer_than_the_manifest_s_is_refused(make: Callable[..., Path]) -> None:
    folder = make()
    manifest = Shards.open(folder).manifest
    rehash(folder, replace(manifest, tokenizer=replace(manifest.tokenizer, sha256="0" * 64)))
    with pytest.raises(DataError, match=r"tokenizer\.json is not the tokenizer of the manifest"):
        verify(folder)


def test_a_document_twice_in_one_pack_is_refused(make: Callable[..., Path]) -> None:
    folder = make()
    shards = Shards.open(folder)
    split = shards.split("valid")
    document = split[0].doc_ids_N[0]
    place = slice(0, int(split[0].doc_lengths_N[0]))
    ids, mask = split[0].input_ids_T.copy(), split[0].loss_mask_T.copy()
    length = place.stop
    ids[length : 2 * length], mask[length : 2 * length] = ids[place], mask[place]
    lengths, doubled = np.array([length, length], np.uint16), np.array([document, document], np.uint32)
    ids[2 * length :], mask[2 * length :] = 1, 0
    write_one_valid_pack(shards, Pack(ids, mask, lengths, doubled, int(mask.sum())))
    with pytest.raises(DataError, match="1 documents are not packed as often as the document table says"):
        verify(folder)


def write_one_valid_pack(shards: Shards, pack: Pack) -> None:
    manifest = shards.manifest
    (shard,) = manifest.splits["valid"].shards
    (shards.folder / shard.file).unlink()
    write_shard(shards.folder / shard.file, laid([pack]))
    rehash(shards.folder, retold(manifest, "splits", "valid", supervised_tokens=pack.num_supervised))
