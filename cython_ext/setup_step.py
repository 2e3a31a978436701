"""The step of `pip install` that builds the extensions, declared in pyproject.toml: each .pyx is one.

A library is said once, where its header is declared (`# distutils: libraries = …` in a .pxd): Cython follows the
cimports to it. An extension that not every machine can build says so, and why, in a line `# optional: …`. If it does
not compile, the rest is built without it.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension
from setuptools.command.build_ext import build_ext

OPTIONAL = re.compile(r"^# optional: .", re.MULTILINE)


def list_extensions(pattern: Extension) -> list[Extension]:
    """Return an extension for each .pyx that the pattern's sources match.

    :param pattern: an entry of `ext-modules` whose sources are globs, relative to the working directory; its flags are
        what all extensions have in common
    :return: the extensions, in the order of their names
    """
    found = []
    for source in sorted(path for glob in pattern.sources for path in Path().glob(glob)):
        # not Extension(...): the pattern's flags, whichever they are, hold for each
        extension = copy.deepcopy(pattern)
        extension.name = ".".join(source.with_suffix("").parts)
        extension.sources = [str(source)]
        extension.optional = OPTIONAL.search(source.read_text(encoding="utf-8")) is not None
        found.append(extension)
    return found


class BuildExt(build_ext):  # type: ignore[misc]  # setuptools has no types
    """build_ext, of an extension for each .pyx."""

    def finalize_options(self) -> None:
        """Put the extensions in the place of the pattern, once."""
        listed = self.distribution.ext_modules
        if any("*" in source for extension in listed for source in extension.sources):
            self.distribution.ext_modules = [one for pattern in listed for one in list_extensions(pattern)]
        super().finalize_options()

    def build_extension(self, ext: Extension) -> None:
        """Translate to C, and build that with the libraries of the headers that are cimported, however deep."""
        (translated,) = cythonize(ext, force=self.force, quiet=self.verbose == 0)
        ext.sources, ext.libraries = translated.sources, translated.libraries
        super().build_extension(ext)
