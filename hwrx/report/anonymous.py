"""What a run says without the names in it, and a copy of a run that is written so.

What is published of a run (reports, pages, archives) says `client`, `server` or `here` instead of the names of hosts,
unless the user asks for them: `Names.of_hosts`. For double-blind review everything that may name people, hosts or
places is taken out: `Names.of_everything`. Either goes over every text of a run: its manifest, the experiment, the
log, the journal, and the columns of the tables. Figures, hardware, kernel and versions stay.
"""

from __future__ import annotations

import ipaddress
import pathlib
import platform
import re
import subprocess
import zlib
from collections.abc import Iterable, Mapping
from typing import TypeVar, cast

import msgspec
import pyarrow as pa

from hwrx.errors import StoreError
from hwrx.host import disk
from hwrx.report.hostnames import (
    ACCOUNT_ELSEWHERE,
    AT_ROLE,
    HOME,
    ORDINARY,
    OWN_NETWORKS,
    find_roles,
    host_labels,
    own_home,
    own_user,
)
from hwrx.runs import experiment as experiments
from hwrx.runs import journal, schema, seal
from hwrx.runs.contents import run_key
from hwrx.runs.experiment import Experiment
from hwrx.runs.reading import Run

Content = TypeVar("Content")

NOBODY = "anonymous"
# keys of the manifest whose values name one machine, or one boot of it, and say nothing of what was measured
NAMING = frozenset({"process", "boot", "node_guid", "gids", "hostname", "log"})
VERSIONS = frozenset({"versions", "id", "seed"})  # keys beneath which four numbers with dots are no address
# folders of every system, whose paths name nobody
COMMON = ("/proc/", "/sys/", "/dev/", "/run/", "/usr/", "/lib/", "/bin/", "/sbin/", "/etc/", "/boot/")
OWN_HARDWARE = "02:68:77:72:"  # of the NICs that hwrx makes
_PATH = re.compile(r"(?<![\w.:/])/(?:[^\s'\",;:=()\[\]{}]+)")
_HOME = re.compile(r"~[\w.-]*/[^\s'\",;:]*")
_ACCOUNT = re.compile(r"[\w.+-]+@[\w.-]+")
_MAC = re.compile(r"\b(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}\b")
_ADDRESS = re.compile(r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9a-fA-F]*:[0-9a-fA-F:]*:[0-9a-fA-F:.]*)(?![\w.:]\w)")


def write_renamed(run: Run, folder: pathlib.Path, names: Names) -> Run:
    """Write a run without its names into an empty folder, and return it as it is read from there.

    :param run: complete and undamaged; of what else stands in its directory (reports, pictures) nothing is taken along
    :param folder: of the new run; it is there
    :param names: what is taken out
    :raises StoreError: if the run is of the format without seals, not complete, or damaged
    """
    if run.manifest["format"] == 1 or run.status != "complete" or run.damage:
        wanted = "made anonymous" if names.everything else "written without the names of hosts"
        raise StoreError(
            f"run {run.path} cannot be {wanted}: it is {'of format 1' if run.manifest['format'] == 1 else ''}"
            f"{run.status if run.status != 'complete' else ''}{'damaged' if run.damage else ''}",
            remedy="measure it again: hwrx rerun RUN" if names.everything else "--hostnames leaves it as it is",
        )
    store = dict(run.contents.store)
    store["experiment"] = experiments.dump_experiment(clean_experiment(run.experiment, names))
    manifest = {**names.clean_tree(run.manifest), "store": store}
    log = names.clean_text((run.path / "log.txt").read_text(encoding="utf-8", errors="replace")).encode()
    store["log"] = {"bytes": len(log), "crc32": zlib.crc32(log)}
    key = run_key(manifest, journal.FILE) or ""
    lines = (seal.sealed_line(names.clean_tree(line), key) + b"\n" for line in run.contents.journal.lines)
    with disk.guarded_writes(folder):
        disk.replace_file(folder / "log.txt", log)
        disk.replace_file(folder / journal.FILE, b"".join(lines))
        disk.replace_file(folder / "experiment.toml", store["experiment"].encode())
        for name, kept in run.contents.tables.items():
            pieces = ((group.part, group.trial, names.clean_table(reader.read(group))) for reader, group in kept)
            if kept:
                _write_table(folder, name, kept[0][0].schema, pieces, run_key(manifest, name) or "")
        trials = names.clean_table(run.contents.trials)
        _write_table(folder, "trials", trials.schema, [(0, None, trials)], run_key(manifest, "trials") or "")
        disk.replace_file(folder / schema.MANIFEST, seal.sealed_document(manifest, schema.MANIFEST))
    return type(run).open(folder)


def is_renamed(run: Run, names: Names) -> bool:
    """Return whether nothing in a run's files has to be taken out, so that its directory may be handed on as it is."""
    for file in run.path.rglob("*"):
        if file.is_file() and file.suffix not in (".parquet", ".pdf", ".png"):
            text = file.read_text(encoding="utf-8", errors="replace")
            if names.clean_text(text) != text:
                return False
    tables = [run.contents.trials, *(table for name in run.contents.tables for table in run.contents.read(name))]
    return all(names.clean_table(table) is table for table in tables)


def clean_experiment(experiment: Experiment, names: Names) -> Experiment:
    """Return the experiment without names in the words that are its author's own."""
    kernel = experiment.kernel and names.clean_text(experiment.kernel)
    return msgspec.structs.replace(
        experiment,
        name=names.clean_text(experiment.name),
        question=names.clean_text(experiment.question),
        kernel=kernel,
        clients=tuple(map(names.clean_text, experiment.clients)),
        servers=tuple(map(names.clean_text, experiment.servers)),
    )


def _write_table(
    folder: pathlib.Path, name: str, columns: pa.Schema, pieces: Iterable[tuple[int, int | None, pa.Table]], key: str
) -> None:
    described = schema.describe_schema(name, columns)
    with disk.replacing_file(folder / f"{name}.parquet") as file:
        seal.write_parquet(
            file, described, ((part, trial, table.cast(described)) for part, trial, table in pieces), key
        )


def names_in(manifest: Mapping[str, object]) -> set[str]:
    """Return words that name people or hosts: those of the run's peer, and of whoever packs it."""
    asked = manifest.get("asked")
    found = {platform.node(), platform.node().partition(".")[0], own_user(), pathlib.Path(own_home()).name}
    peer = asked.get("peer") if isinstance(asked, dict) else None
    if isinstance(peer, str):
        kind, _, name = peer.partition(":")
        # of a command template every word may name somebody
        found |= {name, *re.split(r"[\s@:/.=]+", name if kind in ("ssh", "netns") else peer)}
    author, mail = _git_config("user.name"), _git_config("user.email")
    found |= {author, *(word for word in author.split() if len(word) > 2), mail, mail.partition("@")[0]}
    return {name for name in found if re.search(r"[^\W\d]", name) and len(name) > 1} - ORDINARY


def _git_config(key: str) -> str:
    """Return what git knows of whoever packs; "" without git."""
    try:
        asked = subprocess.run(
            ["git", "config", key], capture_output=True, encoding="utf-8", errors="replace", check=False
        )
    except OSError:
        return ""
    return asked.stdout.strip()


def _as_pattern(word: str) -> str:
    """Return what finds a word alone. One that ends in "[" begins a set of hosts, whose numbers follow."""
    return re.escape(word) if word.endswith("[") else rf"{re.escape(word)}(?!\w)"


class Names:
    """Takes names out of texts: words that are known to name somebody, with all else that has the form of a name.

    :param words: what stands in the place of each word
    :param everything: whether all addresses, accounts and paths go, too; else homes, and accounts on other hosts
    """

    def __init__(self, words: Mapping[str, str], *, everything: bool) -> None:
        self.everything = everything
        # what is in another word comes after it: a host's short name after its long one
        known = sorted(map(_as_pattern, words), key=len, reverse=True)
        # a host is written as it is; of people and places no letter may tell
        flags = re.IGNORECASE if everything else re.NOFLAG
        self._words = {word.lower() if everything else word: instead for word, instead in words.items()}
        self._names = re.compile(rf"(?<!\w)(?:{'|'.join(known)})", flags) if known else None

    @classmethod
    def of_everything(cls, manifest: Mapping[str, object]) -> Names:
        """Return the names of people, hosts and places in a run with this manifest, and of whoever packs it."""
        # hosts of many keep numbers, or nothing that is said of their flows could be told apart
        return cls({**dict.fromkeys(names_in(manifest), NOBODY), **host_labels(manifest)}, everything=True)

    @classmethod
    def of_hosts(cls, manifest: Mapping[str, object]) -> Names:
        """Return the names of hosts and users in a run with this manifest, and of this machine: see `find_roles`."""
        return cls(find_roles(manifest), everything=False)

    def clean_text(self, text: str, *, addresses: bool = True) -> str:
        """Return a text without names; of paths the last part stays. `addresses`: whether it may hold any."""
        if not self.everything:
            text = HOME.sub("~", self._replace(text))
            return AT_ROLE.sub(r"\1", ACCOUNT_ELSEWHERE.sub("user@host", text))
        text = _ACCOUNT.sub(NOBODY, text)
        text = _PATH.sub(lambda found: found[0] if found[0].startswith(COMMON) else _last_part(found[0]), text)
        text = _HOME.sub(lambda found: _last_part(found[0]), text)
        text = _MAC.sub(lambda found: found[0] if found[0].lower().startswith(OWN_HARDWARE) else NOBODY, text)
        if addresses:
            text = _ADDRESS.sub(lambda found: _own_address(found[0]), text)
        return self._replace(text)

    def _replace(self, text: str) -> str:
        if self._names is None:
            return text
        return self._names.sub(lambda found: self._words[found[0].lower() if self.everything else found[0]], text)

    def clean_tree(self, content: Content, key: str = "") -> Content:
        """Return what JSON holds without names; where everything goes, keys of NAMING lose their value."""
        cleaned: object = content
        if key in NAMING and self.everything:
            cleaned = type(content)() if isinstance(content, dict | list | str) else None
        elif isinstance(content, str):
            cleaned = self.clean_text(content, addresses=key not in VERSIONS)
        elif isinstance(content, dict):
            cleaned = {name: self.clean_tree(each, key if key in VERSIONS else name) for name, each in content.items()}
        elif isinstance(content, list):
            cleaned = [self.clean_tree(each, key) for each in content]
        return cast("Content", cleaned)

    def clean_table(self, table: pa.Table) -> pa.Table:
        """Return a table whose columns of text have no names in them."""
        for number, field in enumerate(table.schema):
            kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
            if pa.types.is_string(kind) or pa.types.is_large_string(kind):
                cleaned = {each: each and self.clean_text(each) for each in table.column(number).unique().to_pylist()}
                if any(before != after for before, after in cleaned.items()):
                    values = [cleaned[each] for each in table.column(number).to_pylist()]
                    table = table.set_column(number, field, pa.array(values, kind).cast(field.type))
        return table


def _last_part(path: str) -> str:
    return f"…/{path.rstrip('/').rpartition('/')[2]}"


def _own_address(text: str) -> str:
    """Return an address if it is of the networks that hwrx uses, or no address at all."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return text
    return text if any(found in network for network in OWN_NETWORKS) else NOBODY
