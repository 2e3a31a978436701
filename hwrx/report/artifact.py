"""A run packed for a reviewer: its directory, the versions, the source, and a script that runs it again."""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import io
import pathlib
import re
import subprocess
import tarfile
import tempfile
from datetime import datetime
from typing import TYPE_CHECKING

from hwrx.errors import StoreError
from hwrx.host import disk
from hwrx.host.outside import clean_name
from hwrx.report.anonymous import Names, is_renamed, write_renamed
from hwrx.report.provenance import find_key
from hwrx.report.summary import summarise_runs
from hwrx.version import __version__

if TYPE_CHECKING:
    from hwrx.runs.reading import Run

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_RERUN = """\
#!/usr/bin/env bash
# Runs the experiment of run/ again, with the versions of this archive, and holds the new figures against the old ones.
# It makes source/ and runs/ beside itself; source/lab/setup.sh says which system packages it installs before it does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
here=$PWD
sha256sum --check --quiet SHA256SUMS
if [[ ! -f hwrx-source.tar.gz ]]; then
    echo "the source was not at hand when this was packed: install hwrx @VERSION@ and call: hwrx rerun run" >&2
    exit 3
fi
if [[ ! -d source ]]; then
    mkdir source
    tar -xzf hwrx-source.tar.gz -C source
fi
export PIP_CONSTRAINT=$here/requirements.txt
if grep -qvxFf <(cut -d ' ' -f 1 source/lab/requirements.lock 2>/dev/null) requirements.txt; then
    # measured with other versions than the source's lock names by hash: those of requirements.txt are installed
    export HWRX_UNLOCKED=1
fi
source source/lab/setup.sh
setup
# setup has gone into source/, so from here on names start at the top
exec "$here/source/.venv/bin/hwrx" rerun "$here/run" --runs "$here/runs" "$@"
"""

_README = """\
{heading}

{answer}
({label})

run/               the run directory: manifest.json (the machine), experiment.toml, samples.parquet (every message),
                   trials.parquet, log.txt
rerun.sh           runs it again, and holds the new figures against these
requirements.txt   the Python packages, each at its version
hwrx-source.tar.gz the source of hwrx{commit}
SHA256SUMS         of everything else

To read it without running anything: hwrx report run
{warning}"""


def pack_artifact(
    run: Run, target: pathlib.Path | None = None, *, anonymous: bool = False, hostnames: bool = False
) -> pathlib.Path:
    """Write NAME.tar.gz and return its path. The same run, packed by the same hwrx, gives the same bytes.

    :param target: the file; None: NAME.tar.gz in this folder.
    :param anonymous: whether everything that may name people, hosts or places is taken out: see `anonymous`.
    :param hostnames: whether the names of hosts and users stay; a run that has none is packed as it is either way.
    :raises StoreError: if the file is there, the run cannot be read, or cannot be written without its names.
    """
    target = target or pathlib.Path(f"{run.path.name}.tar.gz")
    names = Names.of_everything(run.manifest) if anonymous else Names.of_hosts(run.manifest)
    if not anonymous and (hostnames or is_renamed(run, names)):
        return _pack(run, target, run.path.name)
    with tempfile.TemporaryDirectory(prefix="hwrx-") as folder:
        return _pack(write_renamed(run, pathlib.Path(folder), names), target, run.path.name)


def _pack(run: Run, target: pathlib.Path, name: str) -> pathlib.Path:
    if target.exists():
        raise StoreError(f"{target} exists", remedy="name another file with --out")
    disk.check_target(target)
    source, commit, warning = _source(run)
    summary = summarise_runs([run])
    try:
        files: dict[str, bytes] = {
            f"run/{file.relative_to(run.path)}": file.read_bytes()
            for file in sorted(run.path.rglob("*"))
            if file.is_file() and not file.is_symlink() and not file.name.startswith(".")
        }
    except OSError as error:
        raise StoreError(f"{run.path} cannot be read: {disk.reason_of(error)}") from error
    warning += "".join(f"\nThe run is damaged: {loss}\n" for loss in run.damage)
    files["requirements.txt"] = requirements_of().encode()
    files["rerun.sh"] = _RERUN.replace("@VERSION@", __version__).encode()
    files["README.txt"] = _README.format(
        heading=": ".join(filter(None, [run.name, str(run.manifest.get("question") or "").partition("\n")[0]])),
        answer=summary.answer,
        label=summary.label,
        commit=commit,
        warning=warning,
    ).encode()
    if source:
        files["hwrx-source.tar.gz"] = source
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {path}\n" for path, content in sorted(files.items()))
    files["SHA256SUMS"] = sums.encode()
    _write(target, name, files, datetime.fromisoformat(run.manifest["started"]).timestamp())
    return target


def requirements_of() -> str:
    """Every Python package that hwrx needs here, directly or not, each pinned to its version."""
    found: dict[str, str] = {}
    waiting = ["hwrx"]
    while waiting:
        name = waiting.pop()
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        key = re.sub(r"[-_.]+", "-", distribution.name).lower()
        if key in found:
            continue
        found[key] = distribution.version
        waiting += [
            match[0]
            for line in distribution.requires or []
            if "extra ==" not in line and (match := re.match(r"[A-Za-z0-9._-]+", line))
        ]
    found.pop("hwrx", None)  # comes as source
    return "".join(f"{name}=={version}\n" for name, version in sorted(found.items()))


def _source(run: Run) -> tuple[bytes, str, str]:
    """The source that the run was measured with, as a tar.gz; which commit it is; and what is wrong with it."""
    tree = pathlib.Path(__file__).parents[2]
    git = ["git", "-c", f"safe.directory={tree}", "-C", str(tree), "--no-optional-locks"]
    measured = find_key(run.manifest, "commit")
    wanted = measured.get("id") if isinstance(measured, dict) else None
    warning = ""
    if wanted is not None and not (isinstance(wanted, str) and _COMMIT.fullmatch(wanted)):
        # git would take a word with a hyphen for an option, and any other for a branch or a file
        warning = f"\nWARNING: the run says '{clean_name(str(wanted))}' for its commit, which is none.\n"
        return b"", " (missing: the run names no commit)", warning
    if isinstance(measured, dict) and measured.get("changed"):
        warning = "\nWARNING: the source had changes that were not committed when the run was measured.\n"
    if not wanted:
        warning = "\nWARNING: the run does not say from which commit it was measured; the source is the packer's.\n"
    try:
        done = subprocess.run(
            [*git, "archive", "--format=tar", wanted or "HEAD"], capture_output=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return b"", " (missing: it was not at hand when this was packed)", warning
    return gzip.compress(done.stdout, mtime=0), f", commit {wanted}" if wanted else "", warning


def _write(target: pathlib.Path, name: str, files: dict[str, bytes], when: float) -> None:
    try:
        with (
            disk.replacing_file(target) as out,
            # neither name nor time in gzip's header: they would make two packings of one run differ
            gzip.GzipFile(filename="", fileobj=out, mode="wb", mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for path, content in sorted(files.items()):
                entry = tarfile.TarInfo(f"{name}/{path}")
                entry.size = len(content)
                entry.mtime = int(when)
                entry.mode = 0o755 if path.endswith(".sh") else 0o644
                archive.addfile(entry, io.BytesIO(content))
    except OSError as error:
        raise StoreError(f"cannot write {target}: {disk.reason_of(error)}") from error
