# Nothing for Python: C functions that endpoints with many connections share.
