"""The ledger: where every message spends its time, and every copy of every byte.

A reader who follows one stamp walks: `bpf/` (the programs, in C) -> `cython_ext.tracer` (load, attach, drain) ->
`probes` (which program stamps which stage on this kernel) -> `ledger` (a recording) -> `join` (events to messages) and
`copies` (bytes to copies per byte) -> the tables of a run.
"""
