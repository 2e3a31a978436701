"""README.md and lab/guide/*.md as their reader meets them: fenced blocks, the commands in them, links.

What a block needs stands behind its language, where no reader sees it: ```` ```sh guest ````. `NEEDS` has the words.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click

from hwrx.cli import cli, main

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "lab" / "guide"
PAGES = [ROOT / "README.md", *sorted(GUIDE.glob("*.md"))]
NEEDS = {
    "": "runs here, as root: tests/host runs it",
    "run": "reads runs that are there: tests/unit runs it on runs that it makes",
    "guest": "needs what a guest has: tests/guest runs it, in the guest that it is in",
    "long": "takes minutes, or sets this machine up: it is read, and planned where it is an experiment",
    "hardware": "needs real NICs or a second machine: it is read, and planned where it is an experiment",
}
SEPARATORS = {";", "&&", "||", "|", "&"}
# besides hwrx and the scripts of lab/: programs that a page may use
OTHERS = {"apt-get", "cd", "export", "git", "ibv_devinfo", "kill", "pytest", "python3", "sleep", "tar", "tcpdump"}


class Block(NamedTuple):
    """A fenced block: its page, the number of its first line, its language, what it needs, its text."""

    page: Path
    line: int
    language: str
    needs: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def find_blocks(page: Path, text: str | None = None) -> Iterator[Block]:
    """Yield the fenced blocks of a page; ValueError if one is not closed."""
    opened: tuple[int, str] | None = None
    inside: list[str] = []
    for number, line in enumerate((page.read_text(encoding="utf-8") if text is None else text).splitlines(), 1):
        if not line.startswith("```"):
            inside.append(line)
        elif opened is None:
            opened, inside = (number, line[3:]), []
        else:
            language, _, needs = opened[1].partition(" ")
            yield Block(page, opened[0], language, needs.strip(), "\n".join(inside) + "\n")
            opened = None
    if opened is not None:
        raise ValueError(f"{page.name}:{opened[0]}: a block that is not closed")


def every_block(language: str, *needs: str) -> list[Block]:
    """All blocks of a language, of all pages, that need one of these."""
    return [
        block for page in PAGES for block in find_blocks(page) if block.language == language and block.needs in needs
    ]


def find_commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command of a shell's text: without comments, variables before it, and redirections."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in SEPARATORS:
                words.append(word)
                continue
            if words:
                yield _bare(words)
            words = []


def _bare(words: list[str]) -> list[str]:
    while words and (words[0] == "sudo" or re.fullmatch(r"[A-Z_]+=.*", words[0])):
        words = words[1:]
    if ">" in words:
        words = words[: words.index(">")]
    return words


def parse_command(words: list[str]) -> click.Context:
    """Let the command line read an hwrx command without running it; click's exception says what is wrong.

    :returns: the context of the innermost command, with the parameters that it would be called with.
    """
    context = cli.make_context("hwrx", list(words))
    while isinstance(context.command, click.Group):
        _, command, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
        context = command.make_context(command.name, rest, parent=context)
    if context.command_path == "hwrx lab shell":  # it leaves options that it does not know to the command in the guest
        for word in context.params["command"][:1]:
            if word.startswith("-"):
                raise click.NoSuchOption(word, ctx=context)
    return context


def find_links(page: Path) -> list[str]:
    """The targets of a page's links and pictures, outside of its blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset|href)="([^"]+)"', text)


def anchors(page: Path) -> set[str]:
    """What a link may name in a page: its headings, as a forge makes anchors of them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.replace("`", "").lower()).replace(" ", "-") for head in heads}


def furnish(folder: Path, page: Path) -> None:
    """Put what a page's commands find into the folder: experiments, and the files that the page shows."""
    shutil.copytree(ROOT / "lab/experiments", folder / "lab/experiments")
    for block in find_blocks(page):
        if block.language == "toml":
            (folder / block.needs).write_text(block.text)


def run_block(block: Block, folder: Path) -> None:
    """Run a block as its reader would, in a folder, with `hwrx` on the path; what it prints is told if it fails."""
    tools = folder / ".bin"
    tools.mkdir(exist_ok=True)
    (tools / "hwrx").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m hwrx "$@"\n')
    (tools / "hwrx").chmod(0o755)
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "XDG_STATE_HOME": str(folder / "state")}
    program = ["bash", "-eu", "-o", "pipefail", "-c", block.text]
    if block.language == "python":
        program = [sys.executable, "-P", "-c", block.text]
    done = subprocess.run(
        program, cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{block}: exit code {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


def call_block(block: Block) -> None:
    """Run a block in this process and folder: starting hwrx anew for each command takes longer than most of them."""
    if block.language == "python":
        exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})
        return
    for words in find_commands(block.text):
        code: object = 0
        if words[0] == "hwrx":
            try:
                code = main(words[1:])
            except SystemExit as end:
                code = end.code
        else:
            code = subprocess.run(words, check=False, stdout=subprocess.DEVNULL).returncode
        assert not code, f"{block}: exit code {code}: {shlex.join(words)}"
