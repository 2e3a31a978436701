"""lab/guide/from-perftest.md answers every option that the installed tools have, and no other."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "lab" / "guide" / "from-perftest.md"
PERFTEST = [f"ib_{verb}_{what}" for verb in ("send", "write", "read", "atomic") for what in ("lat", "bw")]
SOCKPERF = ("ping-pong", "under-load", "throughput", "playback", "server")
TOOLS = {
    "perftest": [[tool, "--help"] for tool in PERFTEST],
    "sockperf": [["sockperf", command, "--help"] for command in SOCKPERF],
    "iperf3": [["iperf3", "--help"]],
}
# the first long option of a line of a list, behind the short one and words such as "-h,-?"; and what follows a comma
LISTED = re.compile(r"^\s*(?:-\S+,?\s*)?(?:-\S,)*\s*(--[A-Za-z0-9][\w-]*)((?:,--[a-z-]+)*)", re.MULTILINE)


def options_of(argv: list[str]) -> set[str]:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    listed = LISTED.findall(done.stdout + done.stderr)
    found = {name for first, others in listed for name in (first, *others.split(","))}
    return found - {"", "--usage"}  # sockperf's other name for --help


def answered(tool: str) -> dict[str, str]:
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {tool}\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `(--[\w-]+)` \| (.+) \|$", section, re.MULTILINE))


@pytest.mark.parametrize("tool", list(TOOLS))
def test_each_option_of_the_tool_has_a_row(needs: Callable[..., None], tool: str) -> None:
    needs(TOOLS[tool][0][0])
    wanted = set().union(*(options_of(argv) for argv in TOOLS[tool]))
    assert len(wanted) > 30
    rows = answered(tool)
    assert wanted == set(rows), f"no row: {sorted(wanted - set(rows))}; no option: {sorted(set(rows) - wanted)}"


@pytest.mark.parametrize("tool", list(TOOLS))
def test_each_option_of_ours_that_an_answer_names_exists(tool: str) -> None:
    ours = subprocess.run(["hwrx", "compare", "--help"], capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"--[a-z][a-z-]*", ours)) | {"--version", "--apply", "--to"}
    for option, words in answered(tool).items():
        named = set(re.findall(r"`[^`]*?(--[a-z][a-z-]*)", words))
        assert named <= known | {option for option in named if f"as `{option}`" in words}, option
