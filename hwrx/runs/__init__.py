"""Runs: an experiment, its schedule of trials on a testbed, and the directory that keeps what they brought.

A run is described by `experiment`, takes place on a `testbed`, trial by trial as `schedule` says, and is written by
`store` (`journal`, `schema`, `seal`) and read by `reading` (`contents`).
"""
