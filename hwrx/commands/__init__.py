"""The subcommands of `hwrx`, one module a family; `hwrx.cli` imports them when they are called."""
