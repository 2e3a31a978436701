"""How the extensions are built, and what each may know of the others and of hwrx."""

from __future__ import annotations

import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from setuptools import Extension

from cython_ext import setup_step

ROOT = Path(__file__).parents[2]
CYTHON = ROOT / "cython_ext"
# Lowest first. A room may know those below it; neighbours do not know each other.
ROOMS = [{"headers"}, {"core"}, {"sockets", "verbs", "bpf"}, {"frames"}, {"roce"}, {"nics"}, {"loops"}]
FLOOR = {room: number for number, rooms in enumerate(ROOMS) for room in rooms}
OPTIONAL = {"tracer", "kernel_btf", "object_btf", "bpf_reader", "xdp_ring", "ne2k"}


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[Extension]:
    """What the build step makes of the pattern in pyproject.toml."""
    import tomllib

    monkeypatch.chdir(ROOT)
    (entry,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    common = {name.replace("-", "_"): value for name, value in entry.items()}
    return setup_step.list_extensions(Extension(**common))


def test_every_extension_is_built_with_the_common_flags_and_has_a_stub(listed: list[Extension]) -> None:
    assert {ROOT / source for extension in listed for source in extension.sources} == set(CYTHON.rglob("*.pyx"))
    for extension in listed:
        (source,) = extension.sources
        assert extension.name == source.removesuffix(".pyx").replace("/", ".")
        assert extension.extra_compile_args == ["-O2"]
        assert (ROOT / source).with_suffix(".pyi").exists(), source


def test_what_not_every_machine_can_build_is_optional(listed: list[Extension]) -> None:
    assert {extension.name.rpartition(".")[2] for extension in listed if extension.optional} == OPTIONAL


def test_a_pattern_of_its_own_stays_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made/one.pyx").write_text("# cython: language_level=3\n# optional: needs a machine\n")
    (tmp_path / "made/two.pyx").write_text("'''a word of # optional: is not enough'''\n")
    monkeypatch.chdir(tmp_path)
    pattern = Extension("made", ["made/*.pyx"], extra_compile_args=["-O1"])
    one, two = setup_step.list_extensions(pattern)
    assert (one.name, one.sources, one.optional) == ("made.one", ["made/one.pyx"], True)
    assert (two.name, two.sources, two.optional) == ("made.two", ["made/two.pyx"], False)
    two.extra_compile_args.append("-g")
    assert one.extra_compile_args == pattern.extra_compile_args == ["-O1"]


def test_a_library_is_linked_where_its_header_is_cimported() -> None:
    """As the build step has it from Cython."""
    headers = {path.stem: path.read_text() for path in CYTHON.rglob("*.pxd")}
    libraries = {name: re.findall(r"(?m)^# distutils: libraries = (.+)$", text) for name, text in headers.items()}
    assert {name: said for name, said in libraries.items() if said} == {
        "infiniband_verbs": ["ibverbs"],
        "rdma_cma": ["rdmacm"],
        "bpf_libbpf": ["bpf"],
        "bpf_syscalls": ["bpf"],
    }


# --- rooms ---------------------------------------------------------------------------------------------------------


def modules_known(text: str) -> set[str]:
    """All modules that a Cython source or a stub imports or cimports, anywhere in it."""
    known = set()
    for line in text.splitlines():
        if found := re.match(r"\s*from\s+([\w.]+)\s+c?import\s+(.*)", line):
            module, names = found.groups()
            # `from cython_ext cimport core` names the module behind the word
            package = module in ("cython_ext", "hwrx") or module.removeprefix("cython_ext.") in FLOOR
            known.update(f"{module}.{name}" for name in re.findall(r"\w+", names) if package)
            known.update([] if package else [module])
        elif found := re.match(r"\s*c?import\s+([\w., ]+)", line):
            known.update(name.split()[0] for name in found[1].split(","))
    return known


def sources(*kinds: str) -> Iterator[Path]:
    return (path for kind in kinds for path in CYTHON.rglob(f"*.{kind}"))


def names_below(path: Path, package: str) -> set[str]:
    return {name for name in modules_known(path.read_text()) if name.split(".")[0] == package}


def test_modules_are_found_in_every_form_of_import() -> None:
    text = """
from cython_ext.core.clock cimport (
    now,
)
from cython_ext.core cimport payload, trial
from cython_ext cimport verbs
from libc.stdint cimport uint32_t
cimport cython, hwrx.verbs as words
def late():
    from hwrx.errors import MachineError
    import hwrx.stats
"""
    assert modules_known(text) == {
        *("cython_ext.core.clock", "cython_ext.core.payload", "cython_ext.core.trial", "cython_ext.verbs"),
        *("libc.stdint", "cython", "hwrx.verbs", "hwrx.errors", "hwrx.stats"),
    }


def test_every_room_has_its_floor() -> None:
    assert {path.parent.name for path in CYTHON.glob("*/__init__.py")} == set(FLOOR)


def test_arrows_between_the_rooms_of_extensions_go_down() -> None:
    for path in sources("pyx", "pxd", "pyi"):
        room = path.parent.name
        assert not any(name.startswith(".") for name in modules_known(path.read_text())), f"{path.name}: full names"
        for name in names_below(path, "cython_ext"):
            other = name.split(".")[1]
            assert other == room or FLOOR[other] < FLOOR[room], f"{room}/{path.name} knows {name}"


def test_no_circle_of_extensions_in_any_room() -> None:
    graph: dict[str, set[str]] = {}
    for path in sources("pyx", "pxd"):
        own = f"cython_ext.{path.parent.name}.{path.stem}"
        graph.setdefault(own, set()).update(names_below(path, "cython_ext") - {own})
    TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_extensions_know_of_hwrx_nothing_but_its_errors() -> None:
    for path in sources("pyx", "pxd"):
        assert names_below(path, "hwrx") <= {"hwrx.errors"}, path.name


def test_the_stubs_know_what_else_is_handed_in() -> None:
    handed_in = {"hwrx.control.messages", "hwrx.nic.e1000e", "hwrx.paths.verbs_end"}
    handed_in |= {"hwrx.paths.verbs_port", "hwrx.paths.roce_port"}
    for path in sources("pyi"):
        assert names_below(path, "hwrx") <= {"hwrx.errors", *handed_in}, path.name
