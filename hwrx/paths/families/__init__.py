"""The families of paths, a module each. `hwrx.paths` lists this package: a module that stands here is registered.

A family module offers `PATHS`, a tuple of `hwrx.paths.model.Path`, and two functions: `check_setting(setting)` raises
UsageError in words if a setting cannot be, and `open_endpoint(prepare)` returns a
`cython_ext.core.transport.Transport` for one end of a trial. It imports its extensions only when an endpoint is opened,
or by `preload_endpoints()`, which it may offer for processes that agents are forked from. It may offer
`release_held()`, which lets go of what its paths hold between two trials.
"""
