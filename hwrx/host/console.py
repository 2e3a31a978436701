"""The one console that hwrx prints with: words from outside have no power over it, and nothing is cut into a pipe."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from hwrx.host.outside import clean_text

if TYPE_CHECKING:
    from rich.console import JustifyMethod, OverflowMethod
    from rich.style import Style

PIPED = 160  # columns where there is no terminal, so that tables of many columns stay readable


class OutsideConsole(Console):
    """Rich's console without markup, emoji and highlighting, that writes control characters as their escapes.

    In `[red]` a process's name would be a colour, and an ESC would reach the terminal: rich takes away the bell and its
    kin alone.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, all text cleaned; rich's own control codes are no text."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control or text.isprintable() else Segment(clean_text(text, most=1 << 20), style)

    def render_str(self, text: str, **options: Any) -> Text:
        """Clean a string before it is measured, so that a table's column is as wide as what is shown in it."""
        # Any: what rich's own takes besides
        return super().render_str(clean_text(text, most=1 << 20), **options)

    def print(
        self,
        *objects: object,
        sep: str = " ",
        end: str = "\n",
        style: str | Style | None = None,
        justify: JustifyMethod | None = None,
        overflow: OverflowMethod | None = None,
        soft_wrap: bool | None = None,
        **more: Any,
    ) -> None:
        """Print as rich does. Where there is no terminal, a table is at least as wide as its words need."""
        # Any: what rich's own takes besides
        with self._wide_enough(objects):
            super().print(
                *objects, sep=sep, end=end, style=style, justify=justify, overflow=overflow, soft_wrap=soft_wrap, **more
            )

    @contextlib.contextmanager
    def _wide_enough(self, objects: Iterable[object]) -> Iterator[None]:
        before = self._width
        if not self.is_terminal:
            unbound = self.options.update(width=1 << 14)
            needed = [Measurement.get(self, unbound, each).minimum for each in objects if isinstance(each, Table)]
            if needed and max(needed) > self.width:
                self.width = max(needed)
        try:
            yield
        finally:
            self._width = before


def open_console(
    file: IO[str] | None = None,
    *,
    stderr: bool = False,
    width: int | None = None,
    piped: int = PIPED,
    soft_wrap: bool = False,
) -> OutsideConsole:
    """Return a console on `file` (standard output, or with `stderr` standard error).

    :param width: columns; None: the terminal's, and without one $COLUMNS or `piped`
    """

    def opened(columns: int | None) -> OutsideConsole:
        return OutsideConsole(
            file=file, stderr=stderr, width=columns, markup=False, emoji=False, highlight=False, soft_wrap=soft_wrap
        )

    console = opened(width)
    if width is None and not console.is_terminal and not os.environ.get("COLUMNS", "").isdecimal():
        console = opened(piped)
    return console
