"""hwrx in pytest: see hwrx.pytest_plugin."""
