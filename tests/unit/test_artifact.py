"""A run packed for somebody else: whole, checkable, the same each time."""

from __future__ import annotations

import io
import pathlib
import platform
import re
import subprocess
import tarfile
import tomllib

import made_runs
import pytest

import hwrx
from hwrx.cli import main
from hwrx.errors import StoreError
from hwrx.report import artifact
from hwrx.runs import store

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: pathlib.Path) -> hwrx.runs.reading.Run:  # type: ignore[name-defined]
    return hwrx.load(made_runs.make(tmp_path, question="Is it so?\nReally?", topology="pair"))


def test_everything_is_in_it_and_its_sums_hold(run, tmp_path: pathlib.Path) -> None:  # type: ignore[no-untyped-def]
    packed = artifact.pack_artifact(run, tmp_path / "a.tar.gz")
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xzf", packed, "-C", tmp_path / "out"], check=True)
    folder = tmp_path / "out" / run.path.name
    subprocess.run(["sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS"], cwd=folder, check=True)
    listed = {line.split()[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    there = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert there == listed | {"SHA256SUMS"}
    assert hwrx.load(folder / "run").samples.equals(run.samples)
    readme = (folder / "README.txt").read_text()
    assert readme.startswith("made: Is it so?\n")
    assert run.summary().answer in readme
    assert (folder / "rerun.sh").stat().st_mode & 0o111
    subprocess.run(["bash", "-n", "rerun.sh"], cwd=folder, check=True)
    # what it calls of lab/setup.sh is there, and so is the extra that it names, if any
    (call,) = re.findall(r"^setup\b.*$", (folder / "rerun.sh").read_text(), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "\nsetup() {" in (ROOT / "lab" / "setup.sh").read_text()
    assert set(call.split()[1:]) <= project["optional-dependencies"].keys()
    # which changes the folder: what comes after it must not depend on that
    assert '\nexec "$here/source/.venv/bin/hwrx" rerun "$here/run"' in (folder / "rerun.sh").read_text()


def test_source_is_that_of_the_commit_where_there_is_one(run, tmp_path: pathlib.Path) -> None:  # type: ignore[no-untyped-def]
    tree = pathlib.Path(artifact.__file__).parents[2]
    packed = artifact.pack_artifact(run, tmp_path / "a.tar.gz")
    with tarfile.open(packed) as archive:
        names = archive.getnames()
        assert (f"{run.path.name}/hwrx-source.tar.gz" in names) == (tree / ".git").exists()
        if (tree / ".git").exists():
            inner = archive.extractfile(f"{run.path.name}/hwrx-source.tar.gz")
            assert inner is not None
            with tarfile.open(fileobj=io.BytesIO(inner.read())) as source:
                assert {"pyproject.toml", "lab/setup.sh", "hwrx/cli.py"} <= set(source.getnames())
        else:
            readme = archive.extractfile(f"{run.path.name}/README.txt")
            assert readme is not None
            assert b"it was not at hand" in readme.read()


def test_two_packings_are_the_same_bytes(run, tmp_path: pathlib.Path) -> None:  # type: ignore[no-untyped-def]
    one, two = (artifact.pack_artifact(run, tmp_path / name) for name in ("a.tar.gz", "b.tar.gz"))
    assert one.read_bytes() == two.read_bytes()


def test_requirements_pin_what_is_installed() -> None:
    pins = dict(line.split("==") for line in artifact.requirements_of().splitlines())
    assert {"numpy", "pyarrow", "msgspec", "matplotlib", "kiwisolver"} <= pins.keys()
    assert "pytest" not in pins
    assert all(pins.values())


def test_a_file_that_is_there_is_not_overwritten(run, tmp_path: pathlib.Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.tar.gz").touch()
    with pytest.raises(StoreError, match=r"a.tar.gz exists"):
        artifact.pack_artifact(run, tmp_path / "a.tar.gz")
    with pytest.raises(StoreError, match=r"cannot write .*: no such file or directory"):
        artifact.pack_artifact(run, pathlib.Path("/proc/absent/a.tar.gz"))


def test_command_names_the_file(run, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    assert main(["artifact", str(run.path), "--out", str(tmp_path / "a.tar.gz")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "a.tar.gz")


def test_rerun_without_running_says_what_it_would(run, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    assert main(["rerun", str(run.path), "--dry-run"]) == 0
    assert "made: 12 trials" in capsys.readouterr().out


# --- for double-blind review -----------------------------------------------------------------------------------------

WHO = {
    "asked": {"peer": "ssh:alice@lab7.example.org", "peer_address": "10.11.12.13"},
    "command": ["/home/alice/bin/hwrx", "compare", "--peer", "ssh:alice@lab7.example.org", "--runs=/data/alice/runs"],
    "machine": {
        "kernel": {"version": "#1 SMP (alice@builder.example.org)", "release": "6.1.0-56"},
        "nics": [{"name": "eth0", "mac": "52:54:00:aa:bb:cc"}],
        "verbs": [{"name": "rxe0", "node_guid": "5054:00ff:feaa:bbcc", "gids": [{"gid": "fe80::5054:ff:feaa:bbcc"}]}],
        "versions": {"libibverbs": "1.14.44.0"},
    },
    "wire": "eth0 to ssh:alice@lab7.example.org mlx5_0, 2001:db8:77::1, 198.18.77.1",
}
NAMES = re.compile(r"alice|lab7|example\.org|builder|10\.11\.12\.13|2001:db8|52:54:00|5054|/home|/data", re.IGNORECASE)


def test_an_anonymous_artifact_names_nobody_and_keeps_the_figures(tmp_path: pathlib.Path) -> None:
    plan = made_runs.layout(repeats=3, messages=100)
    with store.Writer.create(tmp_path, plan, {**made_runs.MANIFEST, **WHO}) as writer:
        writer.log("peer client at alice@lab7.example.org said: no /home/alice/hwrx/agent.py on 10.11.12.13")
        for trial in plan.trials[:-1]:
            made_runs.add(writer, trial)
        writer.add_trial(plan.trials[-1], status="failed", error="peer ssh:alice@lab7.example.org is gone")
    before = hwrx.load(writer.path)
    (writer.path / "notes.txt").write_text("by alice")
    packed = artifact.pack_artifact(before, tmp_path / "a.tar.gz", anonymous=True)
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xzf", packed, "-C", tmp_path / "out"], check=True)
    folder = tmp_path / "out" / before.path.name
    subprocess.run(["sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS"], cwd=folder, check=True)
    after = hwrx.load(folder / "run")
    texts = [file.read_text(errors="replace") for file in folder.rglob("*.*") if file.suffix not in (".gz", ".parquet")]
    texts += [repr(after.manifest), repr(after.rows), repr(after.trials.to_pylist())]
    texts += [repr(after.table(name).to_pylist()) for name in after.contents.tables]
    assert {name for text in texts for name in NAMES.findall(text)} == set()
    assert not (folder / "run" / "notes.txt").exists()
    assert (after.damage, after.status) == ([], "complete")
    assert after.samples.equals(before.samples)
    assert after.summary().answer == before.summary().answer
    # what a reviewer needs is there
    assert after.manifest["machine"]["versions"]["libibverbs"] == "1.14.44.0"
    assert "198.18.77.1" in after.manifest["wire"] and "mlx5_0" in after.manifest["wire"]
    assert after.rows[-1]["error"] == "peer ssh:anonymous is gone"


def test_this_machine_and_user_are_not_named_by_an_anonymous_artifact(tmp_path: pathlib.Path) -> None:
    before = hwrx.load(made_runs.make(tmp_path / "runs", question=f"What of {platform.node()}?"))
    packed = artifact.pack_artifact(before, tmp_path / "a.tar.gz", anonymous=True)
    with tarfile.open(packed) as archive:
        members = {each.name: each for each in archive.getmembers()}
        assert {(each.uname, each.gname, each.uid, each.gid) for each in members.values()} == {("", "", 0, 0)}
        readme = archive.extractfile(members[f"{before.path.name}/README.txt"])
        assert readme is not None
        said = readme.read().decode()
    assert "What of anonymous?" in said and platform.node() not in said


def test_a_run_that_cannot_be_made_anonymous_is_named_with_the_reason(tmp_path: pathlib.Path) -> None:
    run = made_runs.make(tmp_path / "runs")
    content = bytearray((run / "samples.parquet").read_bytes())
    content[100] ^= 1
    (run / "samples.parquet").write_bytes(content)
    assert hwrx.load(run).damage
    with pytest.raises(StoreError, match="cannot be made anonymous: it is damaged"):
        artifact.pack_artifact(hwrx.load(run), tmp_path / "a.tar.gz", anonymous=True)
    assert not (tmp_path / "a.tar.gz").exists()
