"""C functions only: nothing that Python calls."""
