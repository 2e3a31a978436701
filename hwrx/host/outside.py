"""What comes from outside (a peer, a file, another process, the network): text that may be shown, data to be read.

Whoever prints or stores words that hwrx has not chosen passes them through `clean_text`; whoever decodes bytes that it
has not written catches `hwrx.host.decoding.UNREADABLE`.
"""

from __future__ import annotations

import os
import re
import signal
import unicodedata
from typing import TypeVar, cast

from hwrx.errors import UsageError

Content = TypeVar("Content")

LONGEST = 4000  # characters of a text that is shown
LONGEST_NAME = 200  # of a name within a sentence

# Unicode's categories that no terminal is to get: control (C0, DEL, C1), format (among them what turns the direction of
# a line, Unicode Standard Annex 9), surrogates (undecodable bytes of a file name), line and paragraph separators
_UNSHOWN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


_SURROGATES = re.compile("([\ud800-\udfff]+)")


def clean_text(words: str | bytes, *, most: int = LONGEST, lines: bool = True) -> str:
    r"""Return words from outside so that they can be shown: what would move a cursor is written as its escape.

    An ESC becomes the four characters `\x1b`, a byte that is not UTF-8 `\xff` (of bytes) or `\udcff` (of a str).

    :param words: bytes are taken as UTF-8
    :param most: characters of the result; a longer text ends in "…" and says how much is missing
    :param lines: whether line ends and tabs stay; else they are escaped like the rest
    """
    text = words.decode("utf-8", "backslashreplace") if isinstance(words, bytes) else words
    cut = len(text) - most
    if cut > 0:
        text = text[:most]
    kept = "\n\t" if lines else ""
    if not text.isprintable():
        text = "".join(c if c in kept or unicodedata.category(c) not in _UNSHOWN else _escape(c) for c in text)
    return f"{text}… ({cut} characters more)" if cut > 0 else text


def clean_tree(content: Content) -> Content:
    """Return plain data (as JSON has it) with every text in it cleaned, keys too; numbers stay as they are.

    Surrogates stay, for they are how Python writes a file's name that is not UTF-8; a stream shows them as escapes.
    """
    cleaned: object = content
    if isinstance(content, str):
        cleaned = content if content.isprintable() else "".join(map(_clean_piece, _SURROGATES.split(content)))
    elif isinstance(content, dict):
        cleaned = {clean_tree(key): clean_tree(value) for key, value in content.items()}
    elif isinstance(content, list):
        cleaned = [clean_tree(each) for each in content]
    return cast("Content", cleaned)


def _clean_piece(piece: str) -> str:
    return piece if _SURROGATES.match(piece) else clean_text(piece, most=1 << 20)


def clean_name(words: str | bytes) -> str:
    """Return a name from outside (of a process, a device, a host) as one line of at most LONGEST_NAME characters."""
    return clean_text(words, most=LONGEST_NAME, lines=False)


def check_name(name: str, what: str, *, remedy: str = "") -> str:
    """Return a name that a file is looked for by: of a device beneath /sys, of a network namespace.

    :param name: as the user, or a file, has it
    :param what: what it is to be the name of, in words
    :raises UsageError: if no file can have that name, or it would lead to another folder
    """
    if name in ("", ".", "..") or "/" in name or len(os.fsencode(name)) > 255 or clean_name(name) != name:
        raise UsageError(f"'{clean_name(name)}' is not the name of a {what}", remedy=remedy)
    return name


def name_signal(number: int) -> str:
    """Return a signal's name, as signal(7) has it; real-time signals other than the first and last have only a number.

    :param number: as `-returncode` of a process that a signal ended
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        if signal.SIGRTMIN < number < signal.SIGRTMAX:
            return f"SIGRTMIN+{number - signal.SIGRTMIN}"
        return f"signal {number}"


def describe_status(status: int) -> str:
    """Say how a process ended. `status`: its exit code, or -N for signal N."""
    return f"killed by {name_signal(-status)}" if status < 0 else f"exit code {status}"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
