"""The NIC models that hwrx has a driver for: one line each, and all else is asked of the driver's module.

A driver's module, imported when a NIC is opened, offers `open_driver(device, **options) -> hwrx.nic.driver.Driver` if
it works by DMA. It may offer `stop_receiving(bar)`, which ends whatever a killed process left the NIC doing.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Literal

from msgspec import Struct


class Model(Struct, frozen=True):
    """One model: what hwrx calls it, its numbers on the PCI bus, its driver's module, and how packets reach memory."""

    name: str
    vendor: int
    device: int
    module: str
    works_by: Literal["DMA", "ports"] = "DMA"

    @property
    def driver(self) -> ModuleType:
        """The driver's module."""
        return importlib.import_module(self.module)


MODELS: tuple[Model, ...] = (
    Model("82574L", 0x8086, 0x10D3, "hwrx.nic.e1000e"),
    Model("82574LA", 0x8086, 0x10F6, "hwrx.nic.e1000e"),
    Model("ne2k_pci", 0x10EC, 0x8029, "hwrx.nic.ne2k", works_by="ports"),  # Realtek's clone, which QEMU's ne2k_pci is
)


def find_model(vendor: int, device: int) -> Model | None:
    """Return the model with these numbers; None if hwrx has no driver for it."""
    return next((model for model in MODELS if (model.vendor, model.device) == (vendor, device)), None)
