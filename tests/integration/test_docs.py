"""What the pages show is what happens: their console blocks are run and compared."""

import shutil
from pathlib import Path

import pytest

from tests.support.docs import ROOT, Terminal, blocks, commands, fitted, masked, pages

RUN = [page for page in pages() if any(block.language == "console" for block in blocks(page))]


@pytest.mark.xdist_group("demo")
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_console_block_prints_what_the_page_says(
    page: Path, demo_folder: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, printed_by_demo = demo_folder
    terminal = Terminal(shutil.copytree(folder, tmp_path / "page"), printed_by_demo)
    for block in blocks(page):
        for command in commands(block) if block.language == "console" else ():
            printed = terminal.run(command.words)
            shown = fitted(command.expected, printed)
            assert masked(shown) == masked(command.expected), f"{block}: $ {command.words}\n" + "\n".join(printed)


def test_the_scan_sees_the_pages() -> None:
    assert len(RUN) > 4
