"""Whose packet is it: the kernel's way from an address and a port to a socket, computed and held against its tables.

`hashes` computes as the kernel does, step by step; `table` reads the kernel's own tables by BPF programs; `owners`
finds the processes behind sockets, `winner` the one of several that gets a packet; `answer` puts all side by side.
"""
