"""One experiment from its plan to its run directory: what the command line, a program and tests share."""
