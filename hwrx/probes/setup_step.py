"""The step of `pip install` that compiles the BPF objects, declared in pyproject.toml.

It loads what it needs by path, because hwrx is not importable while it is being built. Without clang it says so and
goes on: each is then built when it is first asked for.
"""

from __future__ import annotations

import importlib.util
import pathlib
import sys
from types import ModuleType

from setuptools.command.build_py import build_py


def _load(path: pathlib.Path) -> ModuleType:
    # a package is a folder, whose modules import each other by relative names
    package = path.is_dir()
    file = path / "__init__.py" if package else path
    inside = [str(path)] if package else None
    spec = importlib.util.spec_from_file_location(f"_hwrx_{path.stem}", file, submodule_search_locations=inside)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class BuildPy(build_py):  # type: ignore[misc]  # setuptools has no types
    """build_py, and the object beside hwrx/probes."""

    def run(self) -> None:
        """Copy the modules, then compile."""
        super().run()
        package = pathlib.Path("hwrx").resolve()
        build, stages = _load(package / "probes" / "build.py"), _load(package / "stages")
        folder = package if self.editable_mode else pathlib.Path(self.build_lib, "hwrx")
        for old in (folder / "probes").glob("*.bpf.o"):
            old.unlink()
        try:
            for program in build.PROGRAMS:
                build.compile_into(folder / "probes", stages.stage_header(), program)
        except build.BuildError as error:
            self.warn(f"tracing programs not built: {error}; {error.remedy}")
