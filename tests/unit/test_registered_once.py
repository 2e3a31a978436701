"""What it takes to add to hwrx: a path, a NIC model, a stage, a figure, a claim. Each is added to a copy of the tree.

The copy is changed as somebody would who adds the thing for good; then the commands are asked, in processes of their
own, whether they know it. The files that were changed are counted, and taken away again.
"""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hwrx.paths import PATHS

ROOT = Path(__file__).parents[2]
MADE = (".so", ".c", ".o", ".pyc")  # by a build, or by running


class Tree:
    """A copy of what hwrx consists of."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("hwrx", "cython_ext", "lab/claims"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
            shutil.copy2(ROOT / name, root / name)
        self._before = self._files()

    def _files(self) -> dict[str, str]:
        return {
            str(path.relative_to(self.root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for top in ("hwrx", "cython_ext", "lab", "pyproject.toml", "setup.cfg")
            for path in ((self.root / top).rglob("*") if (self.root / top).is_dir() else [self.root / top])
            if path.is_file() and not path.name.endswith(MADE)
        }

    @property
    def touched(self) -> set[str]:
        """The files that are not as they were, or are new."""
        now = self._files()
        return {name for name in now.keys() | self._before.keys() if now.get(name) != self._before.get(name)}

    def restore(self) -> None:
        for name in self.touched:
            if name in self._before:
                shutil.copy2(ROOT / name, self.root / name)
            else:
                (self.root / name).unlink()
        assert not self.touched

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_text(text)

    def insert(self, name: str, before: str, text: str) -> None:
        """Put text in front of the only place in a file that begins with `before`."""
        whole = (self.root / name).read_text()
        assert whole.count(before) == 1, (name, before)
        self.write(name, whole.replace(before, text + before))

    def python(self, *words: str, code: int = 0) -> str:
        """Run Python on the copy and return all that it printed; its exit code must be `code`."""
        environment = os.environ | {"PYTHONPATH": str(self.root), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def hwrx(self, *words: str, code: int = 0) -> str:
        return self.python("-m", "hwrx", *words, code=code)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return Tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture
def tree(copied: Tree) -> Iterator[Tree]:
    yield copied
    copied.restore()


def module_of(name: str) -> str:
    """The extension called `name`, as it is imported."""
    (path,) = (ROOT / "cython_ext").rglob(f"{name}.pyx")
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


# --- a path --------------------------------------------------------------------------------------------------------

TOY_EXTENSION = '''# cython: language_level=3
"""Datagrams by another name."""

from {udp} cimport UdpTransport


cdef class ToyTransport(UdpTransport):
    """A connected UDP socket."""
'''
TOY_STUB = """from {udp} import UdpTransport

class ToyTransport(UdpTransport): ...
"""
TOY_FAMILY = '''"""A toy: datagrams by another name."""

from __future__ import annotations

from hwrx.control.messages import Prepare, Setting
from hwrx.paths.families import sockets
from hwrx.paths.model import Look, Path

PATHS = (
    Path(
        name="toy",
        needs="nothing",
        sentence="datagrams by another name",
        way="udp",
        look=Look("#12ab34", "p", "-"),
        reads=frozenset({"socket_buffer"}),
        copied_in=("ip_generic_getfrag", "sock_send_length"),
        copied_out="copied to the user",
    ),
)


def check_setting(setting: Setting) -> None:
    """Any will do."""


def open_endpoint(prepare: Prepare):
    """Return one end."""
    from cython_ext.sockets.toy import ToyTransport

    setting = prepare.setting
    sock, notes = sockets._open_socket(setting, prepare.here)
    return ToyTransport(
        sock, size=setting.size, window=1, batch=1, stream=False, trial=prepare.trial, notes=notes,
        manner=sockets.socket_manner(setting), patience=setting.patience, limit=setting.limit,
    )
'''


# one extension of the many, each of which is a file that the build finds
BUILD = """
import sys
from Cython.Build import cythonize
from setuptools import Distribution, Extension
made = cythonize([Extension(sys.argv[1], [sys.argv[1].replace(".", "/") + ".pyx"])], quiet=True)
command = Distribution({"name": "toy", "ext_modules": made}).get_command_obj("build_ext")
command.inplace = True
command.ensure_finalized()
command.run()
"""


def test_a_path_takes_no_more_than_five_files(tree: Tree) -> None:
    assert "toy" not in tree.hwrx("compare", "--help")
    names = {"udp": module_of("udp")}
    tree.write("cython_ext/sockets/toy.pyx", TOY_EXTENSION.format(**names))
    tree.write("cython_ext/sockets/toy.pyi", TOY_STUB.format(**names))
    tree.write("hwrx/paths/families/toy.py", TOY_FAMILY)
    assert len(tree.touched) <= 5, tree.touched
    tree.python("-c", BUILD, "cython_ext.sockets.toy")

    assert "toy" in tree.hwrx("compare", "--help")
    assert "toy 64 B pingpong" in tree.hwrx("compare", "--paths", "udp,toy", "--topology", "here", "--dry-run")
    refused = tree.hwrx("compare", "--paths", "toy", "--window", "4", "--topology", "here", "--dry-run", code=2)
    assert "toy does not read window" in refused
    assert "toy" in tree.hwrx("compare", "--paths", "pigeon", "--dry-run", code=2), "among those to choose of"
    assert "data_ready" in tree.hwrx("stages", "toy", "--no-probe")
    few = ("--messages", "60", "--repeats", "2", "--size", "64", "--topology", "here", "--cpu", "any")
    assert "toy" in tree.hwrx("compare", "--paths", "udp,toy", *few)
    assert "#12ab34" in (tree.root / "runs" / "latest" / "report.html").read_text(), "its own colour"
    shutil.rmtree(tree.root / "runs")

    tree.restore()
    assert "there is no 'toy'" in tree.hwrx("compare", "--paths", "toy", "--dry-run", code=2)


# --- a NIC model ---------------------------------------------------------------------------------------------------

TOY_NIC = '''"""A toy NIC: its registers count packets, and one frame has arrived."""

from __future__ import annotations

import numpy as np

from hwrx.nic.driver import Traffic


class Frame:
    data = np.arange(60, dtype=np.uint8)

    def __len__(self):
        return len(self.data)


class Toy:
    """See hwrx.nic.driver.Driver."""

    mac, link = "02:00:00:00:00:01", 1000

    def __init__(self, device, **options):
        self.device = device
        self.options = options
        self._actions = []

    def receive(self, *, batch=64, timeout=None):
        yield Frame()

    def statistics(self):
        return {"TOYS": 1}

    def traffic(self):
        return Traffic(received=1, missed=0, no_buffer=0)

    def dump(self):
        yield "TOY      0x00000 0x00000001"

    class rx:
        release = staticmethod(lambda count: None)

    def at_close(self, action):
        self._actions.append(action)

    def close(self):
        while self._actions:
            self._actions.pop()()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


def open_driver(device, **options):
    return Toy(device, **options)
'''
# the bus is made of files, and nobody binds anything
ON_A_MADE_BUS = """
import pathlib, sys, types
import hwrx.nic
from hwrx.nic import pci
bus = pathlib.Path(sys.argv.pop(1))
nic = bus / "0000:00:09.0"
nic.mkdir(parents=True, exist_ok=True)
for name, text in (("vendor", "0x1af4"), ("device", "0x7e57"), ("class", "0x020000")):
    (nic / name).write_text(text)
pci.DEVICES, pci.KEPT = bus, bus / "kept"
hwrx.nic.open_device = lambda name, **options: (types.SimpleNamespace(address=name, close=lambda: None), lambda: None)
from hwrx.cli import main
sys.exit(main())
"""


def test_a_nic_model_takes_its_own_files_and_no_more_than_two(tree: Tree, tmp_path: Path) -> None:
    def nic(*words: str, code: int = 0) -> str:
        return tree.python("-c", ON_A_MADE_BUS, str(tmp_path), "nic", *words, code=code)

    assert "1af4:7e57 (no driver here)" in nic("list")
    tree.write("hwrx/nic/toy.py", TOY_NIC)
    tree.insert("hwrx/nic/models.py", '    Model("82574L"', '    Model("toy9000", 0x1AF4, 0x7E57, "hwrx.nic.toy"),\n')
    assert len(tree.touched - {"hwrx/nic/toy.py"}) <= 2, tree.touched
    assert "toy9000" in nic("list")
    assert "no driver here" not in nic("list")
    assert "TOYS" in nic("dump", "0000:00:09.0")
    assert "1 packets, 0 lost" in nic("recv", "0000:00:09.0")

    tree.restore()
    assert "no driver here" in nic("list")
    assert "which this driver does not know" in nic("recv", "0000:00:09.0", code=2)


# --- a stage, a figure, a claim ------------------------------------------------------------------------------------

TOY_STAGE = """    Stage(
        "toy stage",
        "the toy has the packet and looks at it for a while",
        "receiver",
        "softirq",
        KERNEL,
        (function_entry("ip_local_deliver_finish", "toy__fentry"),),
    ),
"""
TOY_PROGRAM = """RECEIVED(ip_local_deliver_finish, toy__fentry, STAGE_TOY_STAGE, 2, struct net *net, struct sock *sk,
         struct sk_buff *skb)
"""


def test_a_stage_takes_two_files(tree: Tree) -> None:
    tree.insert("hwrx/stages/receiving.py", '    Stage(\n        "ip_local_deliver",', TOY_STAGE)
    tree.insert("hwrx/probes/bpf/packets.h", "RECEIVED(ip_rcv, ip_rcv__fentry", TOY_PROGRAM)
    assert len(tree.touched) <= 2, tree.touched
    names = tree.hwrx("stages", "udp", "--no-probe")
    assert names.index("ip_rcv") < names.index("toy stage") < names.index("ip_local_deliver ")
    assert "toy stage" in tree.hwrx("stages", "rdma-send", "--no-probe")
    assert "toy stage" not in tree.hwrx("stages", "nic-ring", "--no-probe")
    if shutil.which("clang"):
        build = (
            "from hwrx import stages; from hwrx.probes import build; print(build.find_or_build(stages.stage_header()))"
        )
        built = Path(tree.python("-c", build).splitlines()[-1])
        assert b"toy__fentry" in built.read_bytes(), "the program that stamps it"
        built.unlink()


TOY_DRAWING = '''def _toy(summary: Summary, figure: Figure, width: float) -> None:
    """A line, whatever was measured."""
    figure.subplots().plot([1, 2], [2, 1], color="#12ab34")


'''


def test_a_figure_takes_one_file(tree: Tree, tmp_path: Path) -> None:
    run = shutil.copytree(ROOT / "tests" / "data" / "format-1", tmp_path / "run")
    figures = "hwrx/report/figures.py"
    tree.insert(figures, "FIGURES: dict", TOY_DRAWING)
    tree.insert(figures, '    "waterfall": (\n', '    "toy": (_toy, "A toy, for nothing", lambda summary: True),\n')
    assert len(tree.touched) <= 1, tree.touched
    tree.hwrx("report", str(run), "--to", "html", "--to", "svg")
    assert "A toy, for nothing" in (run / "report.html").read_text()
    assert (run / "figures" / "toy.svg").exists(), "among the figures for a paper"


TOY_CLAIM = """claim = "A toy is delivered."
question = "Does it come?"
says = ["nobody"]
chapter = "To the program"
topology = "netns"
instrument = "journey"

[parameters]
messages = 20

[verdict]
confirmed = "delivered >= 1"
figure = "{delivered} came"
"""


def test_a_claim_takes_one_file(tree: Tree) -> None:
    tree.write("lab/claims/a-toy-comes.toml", TOY_CLAIM)
    assert len(tree.touched) <= 1, tree.touched
    assert "a-toy-comes: A toy is delivered." in tree.hwrx("claims", "list")
    assert "a-toy-comes" in tree.hwrx("claims", "run", "a-toy-come", code=2), "among those that are meant"


TOY_INSTRUMENTS = '''"""Toys, for nothing."""

from __future__ import annotations

from hwrx.claims.figures import give_figures
from hwrx.claims.model import Measurement
from hwrx.claims.session import Session


@give_figures("toys")
def toys(session: Session, count: int = 3) -> Measurement:
    """Count toys."""
    return Measurement({"toys": count})


def shelf(session: Session) -> str:
    """No instrument, for it measures nothing."""
    return ""
'''
TOY_COUNT = """claim = "There are three toys."
question = "How many are there?"
says = ["nobody"]
chapter = "To the program"
topology = "lo"
instrument = "toys"

[verdict]
confirmed = "toys == 3"
figure = "{toys} toys"
"""


def test_an_instrument_takes_one_file(tree: Tree) -> None:
    tree.write("lab/claims/three-toys.toml", TOY_COUNT)
    assert "there is no instrument 'toys'" in tree.hwrx("claims", "run", "three-toys", "--here", code=2)
    tree.write("hwrx/claims/instruments/playroom.py", TOY_INSTRUMENTS)
    assert len(tree.touched) <= 2, tree.touched
    assert "3 toys" in tree.hwrx("claims", "run", "three-toys", "--here")
    tree.write("lab/claims/three-toys.toml", TOY_COUNT.replace('"toys"', '"shelf"'))
    refused = tree.hwrx("claims", "run", "three-toys", "--here", code=2)
    assert "there is no instrument 'shelf'" in refused
    assert "toys" in refused, "among those that there are"


def test_what_a_path_does_is_asked_of_the_path_and_not_of_its_name() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / "hwrx").rglob("*.py"))
        if path.parent.name != "families"  # where paths are registered
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare) and asks_by_name(node)
    ]
    assert found == []


def asks_by_name(node: ast.Compare) -> bool:
    """Whether the attribute `path` of something is compared with names of paths."""
    sides = [node.left, *node.comparators]
    of_path = any(isinstance(side, ast.Attribute) and side.attr == "path" for side in sides)
    words = {each.value for side in sides for each in ast.walk(side) if isinstance(each, ast.Constant)}
    return of_path and not words.isdisjoint(PATHS)


def test_a_comparison_with_a_name_is_seen() -> None:
    (seen,) = (node for node in ast.walk(ast.parse('spec.path in ("tcp", "udp")')) if isinstance(node, ast.Compare))
    (other,) = (node for node in ast.walk(ast.parse("row.path == baseline")) if isinstance(node, ast.Compare))
    assert asks_by_name(seen)
    assert not asks_by_name(other)
