"""The tables for a paper: LaTeX with booktabs, to be \\input as they are."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess
import tempfile
import textwrap
import unicodedata

from hwrx.errors import MachineError
from hwrx.host import disk
from hwrx.report.cells import Cell, Table
from hwrx.report.model import Summary
from hwrx.report.tables import report_tables

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "µ": r"\textmu{}",
    "×": r"$\times$",
    "±": r"$\pm$",
    "–": "--",
    "†": r"\dag{}",
    "→": r"$\rightarrow$",
    "−": r"$-$",
    "≈": r"$\approx$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "·": r"$\cdot$",
    "°": r"$^\circ$",
    "…": r"\ldots{}",
    "’": "'",
    "“": "``",
    "”": "''",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}
# letters in a line of a column (86 mm) and of a page (178 mm) of a two-column paper, at the size that tables have
COLUMN, PAGE = 62, 132
LONGEST = 45  # rows that stand on a page
_BREAK = r" \\{} "  # braces: what follows may begin with a bracket
HEAD = 14  # letters of a column's name in one line
STAYS = ("p99", "mean", "share")  # columns that belong to the one before
_DOCUMENT = r"""\documentclass[twocolumn,10pt]{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{textcomp}
\usepackage{booktabs}
\usepackage{graphicx}
\setlength{\textwidth}{178mm}
\setlength{\columnsep}{6mm}
\setlength{\textheight}{240mm}
\setlength{\topmargin}{-15mm}
\setlength{\oddsidemargin}{-8mm}
\begin{document}
%s
\end{document}
"""


def escape_latex(words: str) -> str:
    """Words as LaTeX shows them; a letter that its 8-bit fonts lack is given in ASCII, or by its number."""
    return "".join(_SPECIAL.get(c) or (c if c.isascii() and c.isprintable() else _in_ascii(c)) for c in words)


def _in_ascii(letter: str) -> str:
    plain = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return plain if plain.isprintable() and plain else f"U+{ord(letter):04X}" if letter.isprintable() else " "


def latex_parts(table: Table) -> list[Table]:
    """The table cut into such as a page has room for, each with the columns that say what a row is of."""
    cut: list[list[int]] = [[]]
    widths = [_width(table, place) for place in range(len(table.columns))]
    keys = list(range(max(1, table.keys)))
    for place in range(len(keys), len(table.columns)):
        together = [*keys, *cut[-1], place]
        name, _ = table.columns[place]
        if sum(widths[other] + 2 for other in together) > PAGE and cut[-1] and name not in STAYS:
            cut.append([])
        cut[-1].append(place)
    rows = [table.rows[first : first + LONGEST] for first in range(0, len(table.rows), LONGEST)] or [[]]
    pieces = [(own, block) for own in cut for block in rows]
    made = []
    for number, (own, block) in enumerate(pieces, 1):
        kept = [*keys, *own]
        columns = [table.columns[place] for place in kept]
        cells = [(first, [cells[place] for place in kept]) for first, cells in block]
        more = f" (part {number} of {len(pieces)})" if len(pieces) > 1 else ""
        name = table.name + (f"-{number}" if number > 1 else "")
        made.append(Table(name, table.title + more, table.caption + more, columns, cells, table.keys))
    return made


def _width(table: Table, place: int) -> int:
    """Letters of a column: of its longest cell, or of its name, which stands in several lines."""
    cells = (sum(map(len, cells[place])) + bool(cells[place][1]) for _, cells in table.rows)
    return max([*map(len, _head(table.columns[place][0])), *cells])


def _head(name: str) -> list[str]:
    """A column's name in lines of at most HEAD letters where it has blanks."""
    return textwrap.wrap(name, HEAD, break_long_words=False, break_on_hyphens=False) or [""]


def render_latex(table: Table) -> str:
    """The table as one float, or as many as a page has room for; intervals stand behind figures in a smaller size."""
    return "\n".join(map(_float, latex_parts(table)))


def _float(table: Table) -> str:
    alignment = "".join("l" if kind == "t" else "r" for _, kind in table.columns)
    head = " & ".join(_stacked(_head(name), kind) for name, kind in table.columns)
    lines = []
    for number, (first, cells) in enumerate(table.rows):
        if first and number:
            lines.append(r"\addlinespace")
        lines.append(" & ".join(map(_cell, cells)) + r" \\")
    # beyond a column's width: over both columns
    wide = sum(_width(table, place) + 2 for place in range(len(table.columns))) > COLUMN
    star, room = ("*", r"\textwidth") if wide else ("", r"\columnwidth")
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}, \\usepackage{graphicx} and, for the micro sign, \\usepackage{textcomp}",
            rf"\begin{{table{star}}}",
            r"\centering",
            rf"\caption{{{escape_latex(table.title)}. {escape_latex(table.caption)}}}",
            rf"\label{{tab:hwrx-{table.name}}}",
            r"\footnotesize\setlength{\tabcolsep}{3.5pt}%",
            # a table that is wider than its place all the same is made smaller, and no other
            r"\sbox0{%",
            rf"\begin{{tabular}}{{@{{}}{alignment}@{{}}}}",
            r"\toprule",
            rf"{head} \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}}%",
            rf"\ifdim\wd0>{room}\resizebox{{{room}}}{{!}}{{\usebox0}}\else\usebox0\fi",
            rf"\end{{table{star}}}",
            "",
        ]
    )


def _stacked(lines: list[str], kind: str) -> str:
    """A column's name, its lines one above the other."""
    if len(lines) == 1:
        return escape_latex(lines[0])
    return rf"\shortstack[{'l' if kind else 'r'}]{{{_BREAK.join(map(escape_latex, lines))}}}"


def write_all(summary: Summary, directory: pathlib.Path) -> list[pathlib.Path]:
    """Write every table as NAME.tex; return the files."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for table in report_tables(summary):
        path = directory / f"{table.name}.tex"
        disk.write_new(path, render_latex(table))
        written.append(path)
    return written


def check_latex(files: list[pathlib.Path]) -> None:
    """Compile the tables on pages of two columns of 86 mm.

    MachineError where there is no LaTeX, where it refuses them, and where one does not fit.
    """
    compiler = next(filter(None, map(shutil.which, ("pdflatex", "lualatex", "tectonic"))), None)
    if compiler is None:
        raise MachineError(
            "there is no LaTeX on this machine to compile the tables with; they were written and can be used elsewhere",
            remedy="apt install texlive-latex-recommended",
        )
    with tempfile.TemporaryDirectory() as directory:
        document = pathlib.Path(directory) / "tables.tex"
        # read here, so that no path of a file is parsed by TeX
        texts = [file.read_text(encoding="utf-8") for file in files]
        document.write_text(_DOCUMENT % "\n\\clearpage\n".join(texts), encoding="utf-8")
        done = subprocess.run(
            [compiler, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", document.name],
            cwd=directory,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=120,
            check=False,
        )
        if done.returncode:
            complaint = re.search(r"^!.*(?:\n.*){0,3}", done.stdout, re.MULTILINE)
            raise MachineError(f"LaTeX refuses the tables: {complaint[0] if complaint else done.stdout[-500:]}")
        if beyond := re.search(r"^(Overfull \\hbox|LaTeX Warning: Float too large).*", done.stdout, re.MULTILINE):
            raise MachineError(f"a table does not fit the page of a two-column paper: {beyond[0]}")


def _cell(cell: Cell) -> str:
    value, beside = cell
    return escape_latex(value) + (rf" {{\footnotesize {escape_latex(beside)}}}" if beside else "")
