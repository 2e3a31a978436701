"""The Python packages that lab/setup.sh installs: each file of them is known by its hash."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = {"": "requirements.lock", "test": "requirements-test.lock"}


def pins_of(lock: Path) -> dict[str, tuple[Requirement, list[str]]]:
    """Every requirement of a lock file with its hashes, by its normal name; fails at a line that is neither."""
    text = "\n".join(line for line in lock.read_text().splitlines() if not line.startswith("#"))
    pins = {}
    for entry in filter(None, text.replace("\\\n", " ").splitlines()):
        words, *hashes = re.split(r"\s+--hash=sha256:", entry.strip())
        assert all(re.fullmatch(r"[0-9a-f]{64}", each) for each in hashes), entry
        requirement = Requirement(words)
        pins[canonicalize_name(requirement.name)] = requirement, hashes
    return pins


def asked_for(extra: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = [*project["build-system"]["requires"], *project["project"]["dependencies"], "wheel"]
    if extra:
        listed += project["project"]["optional-dependencies"][extra]
    return [Requirement(each) for each in listed]


@pytest.mark.parametrize("extra", LOCKS)
def test_every_requirement_is_pinned_with_hashes_to_a_version_that_is_allowed(extra: str) -> None:
    pins = pins_of(ROOT / "lab" / LOCKS[extra])
    for wanted in asked_for(extra):
        pin, hashes = pins[canonicalize_name(wanted.name)]
        (version,) = pin.specifier
        assert version.operator == "==" and wanted.specifier.contains(version.version), str(wanted)
        assert hashes, str(wanted)
        assert pin.marker is None, f"{pin}: for every machine"
    assert all(hashes for _, hashes in pins.values())


def test_what_both_lock_files_name_is_of_one_version() -> None:
    run, test = (pins_of(ROOT / "lab" / name) for name in LOCKS.values())
    assert {name: pin for name, pin in run.items() if test[name] != pin} == {}


def test_a_lock_names_no_place_where_packages_are_kept() -> None:
    for name in LOCKS.values():
        text = (ROOT / "lab" / name).read_text()
        assert not re.search(r"://|^\s*-(?!-hash)|index|find-links|file:", text, re.MULTILINE), name


def test_what_is_installed_without_its_needs_is_pinned_and_imports_with_what_is_there() -> None:
    pins = pins_of(ROOT / "lab" / "requirements-alone.lock")
    assert {name: [str(each.operator) for each in pin.specifier] for name, (pin, _) in pins.items()} == {
        "apache-otava": ["=="]
    }
    assert all(hashes for _, hashes in pins.values())
    # in a process of its own, in which nothing else has brought what it wants
    code = "import otava.analysis as a; print([c.index for c in a.compute_change_points([1.0] * 6 + [2.0] * 6)[0]])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.stdout == "[6]\n" or "int64(6)" in done.stdout, done.stderr


# --- what setup.sh does with them ------------------------------------------------------------------------------------


def make_wheel(folder: Path) -> str:
    """A package of one module in a folder that pip looks into; returns the wheel's sha256."""
    folder.mkdir()
    path = folder / "hwrx_made-1.0-py3-none-any.whl"
    files = {
        "hwrx_made.py": b"VALUE = 7\n",
        "hwrx_made-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: hwrx-made\nVersion: 1.0\n",
        "hwrx_made-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b'=').decode()},{len(content)}\n"
        for name, content in files.items()
    )
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in {**files, "hwrx_made-1.0.dist-info/RECORD": record.encode()}.items():
            wheel.writestr(name, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A project of its own with lab/setup.sh, a lock of one package, and a pip that installs into site/."""
    tree = tmp_path / "tree"
    (tree / "lab").mkdir(parents=True)
    (tree / "lab" / "setup.sh").write_text((ROOT / "lab" / "setup.sh").read_text())
    (tree / "pyproject.toml").write_text(
        "[build-system]\nrequires = []\n[project]\ndependencies = ['hwrx-made>=1']\noptional-dependencies = {}\n"
    )
    (tree / ".venv" / "bin").mkdir(parents=True)
    for name, called in {
        "pip": f'{sys.executable} -m pip "$@" --target {tree}/site',
        "python": f'{sys.executable} "$@"',
    }.items():
        (tree / ".venv" / "bin" / name).write_text(f"#!/bin/sh\nexec {called}\n")
        (tree / ".venv" / "bin" / name).chmod(0o755)
    return tree


def install(tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    alone = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tree / "index"),
        "HWRX_UNLOCKED": "",
    }
    return subprocess.run(
        ["bash", "-c", 'source lab/setup.sh; cd "$root"; install_packages ""'],
        cwd=tree,
        env={**os.environ, **alone, **environment},
        capture_output=True,
        encoding="utf-8",
    )


def test_a_file_with_the_hash_of_the_lock_is_installed_and_one_with_another_is_not(tree: Path) -> None:
    right = make_wheel(tree / "index")
    lock = tree / "lab" / "requirements.lock"
    lock.write_text(f"hwrx-made==1.0 --hash=sha256:{right[:-1]}{'0' if right[-1] != '0' else '1'}\n")
    done = install(tree)
    assert done.returncode == 3, done.stderr
    assert "DO NOT MATCH THE HASHES" in done.stderr and "HWRX_UNLOCKED=1 installs" in done.stderr
    assert not (tree / "site" / "hwrx_made.py").exists()

    lock.write_text("hwrx-made==1.0\n")  # no hash at all
    assert install(tree).returncode == 3
    assert not (tree / "site" / "hwrx_made.py").exists()

    lock.write_text(f"hwrx-made==1.0 --hash=sha256:{right}\n")
    done = install(tree)
    assert done.returncode == 0, done.stderr
    assert "the files that lab/requirements.lock names by sha256" in done.stderr
    assert (tree / "site" / "hwrx_made.py").exists()


def test_unlocked_installs_what_pyproject_lists_and_says_so(tree: Path) -> None:
    wrong = "0" * 64
    make_wheel(tree / "index")
    (tree / "lab" / "requirements.lock").write_text(f"hwrx-made==1.0 --hash=sha256:{wrong}\n")
    # `wheel` is asked for, too, and is not in this index
    (tree / "lab" / "setup.sh").write_text((tree / "lab" / "setup.sh").read_text().replace('"wheel", sep', "sep"))
    done = install(tree, HWRX_UNLOCKED="1")
    assert done.returncode == 0, done.stderr
    assert "no hash checked" in done.stderr
    assert (tree / "site" / "hwrx_made.py").exists()


def test_another_lock_is_another_stamp(tree: Path) -> None:
    lock = tree / "lab" / "requirements.lock"

    def stamp(**environment: str) -> str:
        return subprocess.run(
            ["bash", "-c", """source lab/setup.sh; printf '%s\\0' "$(listed '')" | stamp_of"""],
            cwd=tree,
            env={**os.environ, **environment},
            capture_output=True,
            encoding="utf-8",
            check=True,
        ).stdout

    lock.write_text("one\n")
    before = stamp()
    assert stamp() == before != stamp(HWRX_UNLOCKED="1")
    lock.write_text("two\n")
    assert stamp() != before


# --- an artifact -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [True, False], ids=["a policy of the machine's", "none"])
def test_a_service_of_a_system_package_is_neither_started_nor_enabled(tree: Path, there: bool) -> None:
    """apt-get meets a policy that forbids it; the machine's own, or one that is gone afterwards."""
    tools = tree / "tools"
    tools.mkdir()
    for name, words in {
        "dpkg-query": "echo 'ii one'; echo 'ii munge'",
        "apt-get": f'[ "$1" = update ] || {{ cat {tree}/policy; echo; }} >{tree}/met; echo "$@" >>{tree}/asked',
        "systemctl": f'echo "$@" >>{tree}/asked',
        "sudo": '"$@"',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{words}\n")
        (tools / name).chmod(0o755)
    own = "#!/bin/sh\nexit 0\n"
    if there:
        (tree / "policy").write_text(own)
    script = f"""
        set -eu; . lab/setup.sh; policy={tree}/policy
        packages=(one slurmd-of-ours munge); services+=([slurmd-of-ours]=slurmd [munge]=munge)
        system_packages"""
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], cwd=tree, env=environment, capture_output=True, text=True, check=True)
    assert "slurmd-of-ours; none of their services is started or enabled: slurmd\n" in done.stderr
    met = (tree / "met").read_text()
    assert met.strip() == (own if there else "#!/bin/sh\nexit 101\n").strip()
    assert (tree / "policy").exists() == there
    assert (tree / "asked").read_text().splitlines() == [
        "update -q",
        "install -y -q --no-install-recommends slurmd-of-ours",
        "disable -q slurmd",
    ]


@pytest.mark.parametrize(("measured", "unlocked"), [("1.0", ""), ("1.1", "1")])
def test_an_artifact_installs_by_hash_if_it_was_measured_with_what_is_locked(
    tmp_path: Path, measured: str, unlocked: str
) -> None:
    from hwrx.report.artifact import _RERUN  # the script without packing a run

    (tmp_path / "source" / "lab").mkdir(parents=True)
    (tmp_path / "source" / "lab" / "requirements.lock").write_text("made==1.0 \\\n    --hash=sha256:00\nother==2\n")
    (tmp_path / "source" / "lab" / "setup.sh").write_text('setup() { echo "unlocked=${HWRX_UNLOCKED:-}"; exit; }\n')
    (tmp_path / "requirements.txt").write_text(f"made=={measured}\n")
    (tmp_path / "hwrx-source.tar.gz").touch()
    (tmp_path / "SHA256SUMS").write_text(f"{hashlib.sha256().hexdigest()}  hwrx-source.tar.gz\n")
    (tmp_path / "rerun.sh").write_text(_RERUN)
    environment = {name: value for name, value in os.environ.items() if name != "HWRX_UNLOCKED"}
    done = subprocess.run(
        ["bash", "rerun.sh"], cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout == f"unlocked={unlocked}\n"
