"""A run as it is shown to others: without the names of hosts and users, unless they are asked for."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping
from typing import overload

import pyarrow as pa

from hwrx.report.anonymous import Names, clean_experiment
from hwrx.report.reported import ReportedRun
from hwrx.runs.experiment import Experiment


class PublishedRun(ReportedRun):
    """A run whose every text says client, server, here or user in the place of a name.

    Its files are as they were: `hwrx rerun` needs the names, and reads it as a ReportedRun.
    """

    def __init__(self, path: pathlib.Path, manifest: dict[str, object]) -> None:
        super().__init__(path, manifest)
        self.names = Names.of_hosts(self.manifest)
        self._named = self.manifest
        self.manifest = self.names.clean_tree(self.manifest)

    @property
    def whole_manifest(self) -> Mapping[str, object]:
        """See ReportedRun."""
        return self._named

    def clean_text(self, text: str) -> str:
        """See ReportedRun."""
        return self.names.clean_text(text)

    @property
    def damage(self) -> list[str]:
        """See Run."""
        return [self.names.clean_text(each) for each in super().damage]

    @functools.cached_property
    def experiment(self) -> Experiment:
        """See Run."""
        return clean_experiment(super().experiment, self.names)

    @property
    def experiment_text(self) -> str:
        """See Run."""
        return self.names.clean_text(super().experiment_text)

    @functools.cached_property
    def _rows(self) -> list[dict[str, object]]:
        return self.names.clean_tree(super()._rows)

    @property
    def trials(self) -> pa.Table:
        """See Run."""
        return self.names.clean_table(super().trials)

    @overload
    def table(self) -> str: ...

    @overload
    def table(self, name: str) -> pa.Table | None: ...

    def table(self, name: str | None = None) -> pa.Table | str | None:
        """See ReportedRun."""
        if name is None:
            return super().table()
        found = super().table(name)
        return None if found is None else self.names.clean_table(found)

    def document(self, name: str) -> dict[str, object]:
        """See Run."""
        return self.names.clean_tree(super().document(name))


def open_published(path: pathlib.Path | str, *, hostnames: bool = False) -> ReportedRun:
    """Open a run for what is shown to others.

    :param path: the run's directory
    :param hostnames: whether the names of hosts and users stay
    :raises StoreError: see Run.open
    """
    return (ReportedRun if hostnames else PublishedRun).open(path)
