"""Drills with the kernel's rxe as the peer: rules that it keeps, one that it does not, and nothing left behind."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from guest_ends import Places, resources

from hwrx.cli import main
from hwrx.drill import model, run

pytestmark = pytest.mark.hwrx(needs="pyverbs")

KEPT = (
    "gap-is-refused-once", "duplicate-atomic-is-executed-once", "wrong-icrc-is-met-by-silence",
    "write-with-a-wrong-key-is-refused", "no-receive-request-is-an-rnr-nak", "read-response-has-first-middle-last",
    "lost-request-is-sent-again", "rnr-wait-is-kept", "numbers-follow-one-another", "immediate-arrives-with-a-send",
    "compare-swap-changes-what-is-equal",
)  # fmt: skip


def played(pair: Places, names: tuple[str, ...]) -> dict[str, model.Result]:
    there = pair["server"]
    drills = model.find_drills(names, model.every_drill())
    request = run.Request(
        drills, str(there.verbs), str(there.address), str(there.netdev), netdev=str(pair["client"].netdev)
    )
    return {result.name: result for result in run.drills_here(request, lambda stage, text: None)}


def test_rxe_keeps_what_it_keeps_and_nothing_is_left(pair: Places) -> None:
    before = resources()
    found = played(pair, KEPT)
    assert {name: (result.verdict, result.words) for name, result in found.items() if result.verdict != "kept"} == {}
    assert resources() == before
    shown = subprocess.run(["ip", "neighbour", "show", "198.18.77.70"], capture_output=True, text=True, check=True)
    assert "02:68:77:72:78:70" not in shown.stdout


def test_rxe_takes_an_acknowledgement_for_what_was_never_sent(pair: Places) -> None:
    (result,) = played(pair, ("ack-of-what-was-not-sent-is-ignored",)).values()
    assert result.verdict == "broken"
    assert result.figures["again"] == 0 and result.figures["peer_ok"] == 1


def test_the_command_drills_a_device_of_this_machine(
    pair: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, out = pair["server"], tmp_path / "report.json"
    words = ["--device", str(there.verbs), "--address", str(there.address), "--beneath", str(there.netdev)]
    words += ["--netdev", str(pair["client"].netdev), "--out", str(out)]
    assert main(["drill", "run", "gap-is-refused-once", *words]) == 0
    report = json.loads(out.read_text())
    assert report["peer"] == there.verbs and report["results"][0]["verdict"] == "kept"
    assert "of 1 rules 1 kept" in capsys.readouterr().out
    assert main(["drill", "run", "gap-is-refused-once", *words[:2], "--address", "198.18.99.9", *words[4:]]) == 3
    assert "no RoCE v2 GID of 198.18.99.9" in capsys.readouterr().err
