"""The notebooks of the guide, executed as their reader would; in the tree they have no outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

GUIDE = Path(__file__).resolve().parents[2] / "lab" / "guide"
NOTEBOOKS = sorted(GUIDE.glob("*.ipynb"))
LIMIT = 900  # seconds of a cell, against hanging
# what must be shown besides words: a run, and a figure
SHOWN = {"first-comparison": ("text/html", "image/svg+xml"), "load-and-tails": ("text/html", "image/svg+xml")}


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def executed(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Execute a notebook in a folder; an exception in it is raised here, with the cell."""
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "runtime"))
    notebook = read(path)
    NotebookClient(notebook, timeout=LIMIT, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["copies-and-anatomy", "first-comparison", "load-and-tails"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_has_prose_and_no_outputs(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    kinds = [cell["cell_type"] for cell in notebook["cells"]]
    assert kinds[0] == "markdown"
    assert 2 * kinds.count("markdown") >= kinds.count("code")
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}


@pytest.mark.filterwarnings("default")  # of the libraries that carry a notebook's messages
@pytest.mark.parametrize("name", ["first-comparison", "load-and-tails"])
def test_a_notebook_on_this_machine_can_be_executed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = executed(GUIDE / f"{name}.ipynb", tmp_path, monkeypatch)
    shown = {kind for cell in notebook["cells"] for each in cell.get("outputs", []) for kind in each.get("data", {})}
    assert set(SHOWN[name]) <= shown


@pytest.mark.beside
@pytest.mark.filterwarnings("default")
def test_a_notebook_that_boots_guests_can_be_executed(
    needs: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("root", "guest")
    notebook = executed(GUIDE / "copies-and-anatomy.ipynb", tmp_path, monkeypatch)
    words = "".join(each.get("text", "") for cell in notebook["cells"] for each in cell.get("outputs", []))
    assert "1+1 counted by probes" in words
    assert "1+1 by address" in words
    assert "udp_sendmsg" in words
    assert "posted" in words
