"""The lab: virtual machines that have the hardware, and the one way to run something inside and hear its lines.

From the bottom: `kernel` (a distribution's, unpacked), `initramfs`, `accelerator`, `mux` and `port` (many streams over
one serial line), `guest` (its end of that line, inside), `vm` (QEMU). `inquest` says what became of a program that fell
silent; `doctor` what this machine can do.
"""
