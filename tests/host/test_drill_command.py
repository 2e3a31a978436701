"""`hwrx drill run --peer rxe`: boots a guest, drills its rxe, keeps the report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.beside

LIMIT = 600.0


def test_rxe_in_a_guest_is_drilled_and_its_kernel_told(needs, tmp_path: Path) -> None:
    needs("guest")
    out = tmp_path / "rxe.json"
    words = ["gap-is-refused-once", "ack-of-what-was-not-sent-is-ignored", "--peer", "rxe", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "hwrx", "drill", "run", *words], capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 1, done.stdout + done.stderr
    report = json.loads(out.read_text())
    assert report["peer"] == "rxe" and report["kernel"][0].isdigit()
    assert [result["verdict"] for result in report["results"]] == ["kept", "broken"]
    assert f"rxe, Linux {report['kernel']}: of 2 rules 1 kept, 1 broken." in done.stdout
    page = subprocess.run(
        [sys.executable, "-m", "hwrx", "drill", "page", str(out)], capture_output=True, text=True, check=True
    )
    assert "| kept | `gap-is-refused-once` |" in page.stdout
