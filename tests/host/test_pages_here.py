"""README.md and the guide: what they say can be typed on any machine is typed here, block after block."""

from __future__ import annotations

import pathlib

import pages
import pytest
from pages import PAGES

RUN = ("sh", "python")
HERE = [page for page in PAGES if any(block.language in RUN and not block.needs for block in pages.find_blocks(page))]


@pytest.mark.parametrize("page", HERE, ids=lambda page: page.stem if page.stem != "README" else page.parent.name)
def test_the_commands_of_a_page_do_what_it_says(page: pathlib.Path, tmp_path: pathlib.Path) -> None:
    pages.furnish(tmp_path, page)
    for block in pages.find_blocks(page):
        if block.language in RUN and not block.needs:
            pages.run_block(block, tmp_path)
