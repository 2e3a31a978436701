"""A guest's boot words: what of the machine itself is an axis of an experiment.

The kernel's own names are in Documentation/admin-guide/kernel-parameters.txt.
"""

from __future__ import annotations

from hwrx.control.guest_boot import Boot

# intel_iommu=off has no IOMMU; iommu=pt maps all memory one to one, and nothing is mapped for a packet; iommu=nopt maps
# each buffer, and takes it away in a batch (lazy) or before the driver has it back (strict)
IOMMU = {
    "off": ("intel_iommu=off",),
    "passthrough": ("intel_iommu=on", "iommu=pt"),
    "lazy": ("intel_iommu=on", "iommu=nopt", "iommu.strict=0"),
    "strict": ("intel_iommu=on", "iommu=nopt", "iommu.strict=1"),
}
# hpet, the default under emulation, makes each look at the clock a device access. The check of the timer interrupt
# fails, and panics, on a host so busy that the guest misses its interrupts.
_BASE = ("console=ttyS0", "loglevel=5", "panic=-1", "clocksource=tsc", "tsc=reliable", "no_timer_check")
# The TSC of a guest that counts is the count: 1 GHz, exactly. A kernel that calibrates it finds another frequency, some
# ppm off, at each boot, and each reading of the clock is rounded otherwise. So it is told, and both devices to which
# tsc_refine_calibration_work would hold it are taken away.
_COUNTED = ("tsc_early_khz=1000000", "hpet=disable", "pmtmr=0")
HUGE_PAGES = 64  # of 2 MiB: an agent takes as many as its largest buffer needs, and a guest has 2 GiB


def base_words(clock: str) -> tuple[str, ...]:
    """Return the words that each guest with the clock (`wall`, `icount`) boots with."""
    return (*_BASE, *_COUNTED) if clock == "icount" else _BASE


def kernel_words(boot: Boot, *, huge_pages: bool = False) -> tuple[str, ...]:
    """Return the words for the kernel's command line; of two that contradict each other the kernel heeds the last.

    :param huge_pages: reserve pages of 2 MiB, for the buffers of trials that ask for them
    """
    return (
        *IOMMU.get(boot.iommu or "", ()),
        *([f"mitigations={boot.mitigations}"] if boot.mitigations is not None else []),
        *([f"init_on_alloc={boot.init_on_alloc}"] if boot.init_on_alloc is not None else []),
        # where nothing translates a NIC's addresses, the rings of a driver in user space have to be in one piece
        *([f"hugepages={HUGE_PAGES}"] if huge_pages or boot.iommu == "off" else []),
    )
