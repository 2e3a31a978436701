"""What is handed out: a wheel that holds everything, and an installation that is edited in place."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.beside

ROOT = Path(__file__).parents[2]
EXTENSIONS = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted((ROOT / "cython_ext").rglob("*.pyx"))
]
CHECK = f"""
import importlib, hwrx.cli
for name in {EXTENSIONS!r}:
    importlib.import_module(name)
print(hwrx.__file__)
"""


def run(*argv: str | Path, cwd: Path) -> str:
    # without debugging information the compiler takes two thirds of the time
    environment = {"CFLAGS": "-g0", **({"CC": "ccache gcc"} if shutil.which("ccache") else {}), **os.environ}
    done = subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree as git has it: what is built here does not meet what is built there."""
    tree = tmp_path_factory.mktemp("sources")
    listed = run(
        "git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT
    )
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():  # deleted, but not yet so for git
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    return tree


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment that sees the dependencies of this one, and no hwrx."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", folder, cwd=folder)
    packages = next((folder / "lib").glob("python*")) / "site-packages"
    here = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "dependencies.pth").write_text("\n".join(here) + "\n")
    return folder


def test_a_wheel_holds_every_extension_stub_and_declaration_and_runs(
    sources: Path, environment: Path, tmp_path: Path
) -> None:
    # without --wheel it is built of the source distribution, which so is held to be whole
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, cwd=sources)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for extension in EXTENSIONS:
        stem = extension.replace(".", "/")
        assert any(name.startswith(f"{stem}.") and name.endswith(".so") for name in names), extension
        assert f"{stem}.pyi" in names
    for folder, kind in (("hwrx", "*.py"), ("cython_ext", "*.py"), ("cython_ext", "*.pxd")):
        for module in (ROOT / folder).rglob(kind):
            assert str(module.relative_to(ROOT)) in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith("tests/") or name.endswith((".pyx", ".c")) for name in names if "hwrx/" not in name)

    target = tmp_path / "installed"
    run(
        sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", target, wheel, cwd=tmp_path
    )
    python = environment / "bin/python"
    where = run("env", f"PYTHONPATH={target}", python, "-c", CHECK, cwd=tmp_path)
    assert where.strip() == str(target / "hwrx/__init__.py")
    assert "Commands:" in run("env", f"PYTHONPATH={target}", python, "-m", "hwrx", "--help", cwd=tmp_path)


def test_an_editable_installation_runs_the_tree_itself(sources: Path, environment: Path, tmp_path: Path) -> None:
    run(
        sys.executable, "-m", "pip", "--python", environment / "bin/python", "install", "-q", "--no-deps", "--no-index",
        "--no-build-isolation", "-e", ".", cwd=sources,
    )  # fmt: skip
    found = run(environment / "bin/python", "-P", "-c", CHECK, cwd=tmp_path)
    assert found.strip() == str(sources / "hwrx/__init__.py")
    assert "Commands:" in run(environment / "bin/hwrx", "--help", cwd=tmp_path)


def test_debian_13_as_host_is_for_root_and_says_so_before_it_makes_anything(tmp_path: Path) -> None:
    place = tmp_path / "debian13"
    nobody = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    done = subprocess.run(
        [ROOT / "lab/debian13"],
        env={**os.environ, "HWRX_DEBIAN13": str(place)},
        capture_output=True,
        text=True,
        **nobody,
    )  # type: ignore[call-overload]
    assert done.returncode == 3
    assert "needs root: sudo ./lab/debian13" in done.stderr
    assert not place.exists()
