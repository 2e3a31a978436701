"""The tables for a paper: LaTeX with booktabs, to be \\input as they are."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess
import tempfile

from hwrx.errors import MachineError
from hwrx.report.cells import Cell, Table
from hwrx.report.model import Summary
from hwrx.report.tables import tables

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
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}
NARROW = 7  # columns that fit without being made smaller
WIDEST = 15  # columns that can be read where they are made smaller
_DOCUMENT = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{textcomp}
\usepackage{booktabs}
\usepackage{graphicx}
\begin{document}
%s
\end{document}
"""


def escape(words: str) -> str:
    """Words as LaTeX shows them. What is not in its 8-bit fonts becomes a question mark."""
    return "".join(_SPECIAL.get(c, c if c.isascii() and c.isprintable() else "?") for c in words)


def _readable(table: Table) -> Table:
    """Without columns that a page has no room for; the HTML report has them."""
    if len(table.columns) <= WIDEST:
        return table
    kept = [place for place, (name, _) in enumerate(table.columns) if name not in ("p99", "mean")]
    rows = [(first, [cells[place] for place in kept]) for first, cells in table.rows]
    return Table(table.name, table.title, table.caption, [table.columns[place] for place in kept], rows)


def render(table: Table) -> str:
    """One table as a float; the intervals stand behind the figures in a smaller size."""
    table = _readable(table)
    alignment = "".join("l" if kind == "t" else "r" for _, kind in table.columns)
    head = " & ".join(escape(name) for name, _ in table.columns)
    lines = []
    for number, (first, cells) in enumerate(table.rows):
        if first and number:
            lines.append(r"\addlinespace")
        lines.append(" & ".join(map(_cell, cells)) + r" \\")
    # beyond a column's width: over both columns, and as small as that takes
    wide = len(table.columns) > NARROW
    star, fit, end = ("*", r"\resizebox{\textwidth}{!}{%", "}") if wide else ("", "", "")
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}, \\usepackage{graphicx} and, for the micro sign, \\usepackage{textcomp}",
            rf"\begin{{table{star}}}",
            r"\centering\small",
            rf"\caption{{{escape(table.caption)}}}",
            rf"\label{{tab:hwrx-{table.name}}}",
            *filter(None, [fit]),
            rf"\begin{{tabular}}{{@{{}}{alignment}@{{}}}}",
            r"\toprule",
            rf"{head} \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            rf"\end{{tabular}}{end}",
            rf"\end{{table{star}}}",
            "",
        ]
    )


def write_all(summary: Summary, directory: pathlib.Path) -> list[pathlib.Path]:
    """Write every table as NAME.tex; return the files."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for table in tables(summary):
        path = directory / f"{table.name}.tex"
        path.write_text(render(table), encoding="utf-8")
        written.append(path)
    return written


def check(files: list[pathlib.Path]) -> None:
    """Compile the tables; MachineError where there is no LaTeX, or where it refuses them."""
    compiler = next(filter(None, map(shutil.which, ("pdflatex", "lualatex", "tectonic"))), None)
    if compiler is None:
        raise MachineError(
            "there is no LaTeX on this machine to compile the tables with; they were written and can be used elsewhere",
            remedy="apt install texlive-latex-recommended",
        )
    with tempfile.TemporaryDirectory() as directory:
        document = pathlib.Path(directory) / "tables.tex"
        # read here, so that no path of a file is parsed by TeX
        document.write_text(_DOCUMENT % "\n".join(file.read_text(encoding="utf-8") for file in files), encoding="utf-8")
        done = subprocess.run(
            [compiler, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", document.name],
            cwd=directory,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=120,
            check=False,
        )
        if done.returncode:
            complaint = re.search(r"^!.*(?:\n.*){0,3}", done.stdout, re.MULTILINE)
            raise MachineError(f"LaTeX refuses the tables: {complaint[0] if complaint else done.stdout[-500:]}")


def _cell(cell: Cell) -> str:
    value, beside = cell
    return escape(value) + (rf" {{\footnotesize {escape(beside)}}}" if beside else "")
