"""The labs of a session of tests: each is put up once, for all tests that want it, and taken down with the session."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from hwrx.errors import HwrxError
from hwrx.scripting.lab import Lab
from hwrx.testing.wishes import Wish

Key = tuple[str, str | None, tuple[tuple[str, Any], ...]]


class LabKeeper:
    """Puts labs up when a test first wants them. One that cannot be put up is not tried again."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._labs: dict[Key, Lab | HwrxError] = {}
        self._stack = contextlib.ExitStack()

    def lab_for(self, wish: Wish, kernel: str | None) -> Lab:
        """Return the lab that a test wants, put up.

        :param kernel: that the test runs on this time
        :raises HwrxError: if it cannot be put up
        """
        key = (wish.topology, kernel, wish.lab)
        if key not in self._labs:
            try:
                lab = Lab(wish.topology, kernel=kernel, runs=self._runs, **dict(wish.lab))
                self._labs[key] = self._stack.enter_context(lab)
            except HwrxError as error:
                self._labs[key] = error
        found = self._labs[key]
        if isinstance(found, HwrxError):
            raise found
        return found

    def close(self) -> None:
        """Take all labs down."""
        self._labs.clear()
        self._stack.close()
