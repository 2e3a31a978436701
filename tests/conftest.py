"""What the layers of the tests need, decided in one place.

unit/ runs anywhere. host/ needs root and network namespaces. guest/ runs inside a virtual machine (`elsewhere`).
hil/ needs a real verbs NIC. What this machine lacks is a skip that says why, HWRX_REQUIRE_HW=1 or --hwrx-require makes
it a failure: hwrx's own plug-in (hwrx.pytest_plugin) decides both.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

pytest_plugins = ("elsewhere", "pytester")

LAYERS = {"host": ("root", "namespaces"), "hil": ("root", "nic")}


def pytest_configure(config: pytest.Config) -> None:
    """What is required is required in every lane: they are other processes (`elsewhere`)."""
    if config.getoption("hwrx_require"):
        os.environ["HWRX_REQUIRE_HW"] = "1"


@pytest.fixture(scope="session")
def needs(hwrx_needs: Callable[..., None]) -> Callable[..., None]:
    """`needs("root", "iperf3")` skips or fails where this machine lacks one of them: a capability, or a command."""

    def check(*names: str) -> None:
        from hwrx.testing.capabilities import CAPABILITIES

        hwrx_needs(*(name if name in CAPABILITIES else f"command:{name}" for name in names))

    return check


@pytest.fixture(autouse=True)
def _layer(request: pytest.FixtureRequest, needs: Callable[..., None]) -> None:
    needs(*LAYERS.get(request.path.parent.name, ()))
