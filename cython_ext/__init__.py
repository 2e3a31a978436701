"""The Cython modules: everything that runs between the first and the last message of a trial."""
