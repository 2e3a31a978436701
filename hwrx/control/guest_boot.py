"""What a guest is booted with, as far as settings differ in it."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

# What one iteration of `rep movs` and `rep stos`, and with it a copied byte, costs a guest that counts instructions:
# an instruction a byte, or, on a processor without the flags ERMS and FSRM, an instruction a word of 8 bytes
Priced = Literal["byte", "word"]
# What the guest's kernel makes of its IOMMU: hwrx.lab.boot has the words
Iommu = Literal["off", "passthrough", "lazy", "strict"]
Mitigations = Literal["off", "auto"]


class Boot(Struct, frozen=True, kw_only=True):
    """What a guest is booted with: settings that differ in it have guests of their own. None: as the lab has it."""

    copies_priced: Priced = "byte"
    iommu: Iommu | None = None
    mitigations: Mitigations | None = None
    init_on_alloc: Literal[0, 1] | None = None

    def __str__(self) -> str:
        """In words, as in "copies priced by the byte, iommu strict"."""
        given = {name: getattr(self, name) for name in MACHINE if getattr(self, name) is not None}
        return ", ".join(
            [f"copies priced by the {self.copies_priced}", *(f"{name} {value}" for name, value in given.items())]
        )


BOOT_FIELDS = Boot.__struct_fields__
MACHINE = BOOT_FIELDS[1:]  # those that a guest has whatever its clock is
