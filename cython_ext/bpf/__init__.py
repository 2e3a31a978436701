"""The ledger's BPF programs: loaded, attached, read; and what the kernel's BTF and the object's say."""
