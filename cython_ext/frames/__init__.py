"""Paths of whole frames: a link (the kernel's rings stand here, a NIC's in `nics`), and UDP over it."""
