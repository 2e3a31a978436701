"""How to set up, run and tear down each delivery path, one module a family."""
