"""Kernel programs that look: which stage or actor a stamp is of, where packets die, what a socket table holds.

A reader who follows one stamp walks: `bpf/` (the programs, in C) -> `build` (compiled by clang) ->
`cython_ext.bpf.tracer` (load, attach, drain) -> `attaching` (which program stamps which stage on this kernel) ->
`recording` -> `service` (what an agent answers); from there `hwrx.timelines` joins events to messages. `counting` gives
every nanosecond of every CPU to one actor.
"""
