"""README.md and the guide: commands that need a guest's kernel or NICs are typed in the guest that the tests are in."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pages
import pytest
from pages import Block, every_block

from hwrx.nic import pci
from hwrx.wires import guest_nics, topology

NIC_OF_THE_PAGES = "00:04.0"


@pytest.fixture
def typed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Block], None]:
    """Types a block in a folder of its own, with the address of a NIC that hwrx drives for that of the pages."""
    with topology.build_topology("nic"):  # its NICs get their driver, and keep it
        mac = guest_nics.NIC_HARDWARE["server"]
        address = next(nic.address for nic in pci.list_nics() if nic.mac == mac)
    monkeypatch.chdir(tmp_path)

    def run(block: Block) -> None:
        text = block.text.replace(NIC_OF_THE_PAGES, address.removeprefix("0000:"))
        pages.call_block(block._replace(text=text))

    return run


@pytest.mark.parametrize("block", [*every_block("sh", "guest"), *every_block("python", "guest")], ids=str)
def test_what_needs_a_guest_does_what_the_page_says(block: Block, typed: Callable[[Block], None]) -> None:
    typed(block)
