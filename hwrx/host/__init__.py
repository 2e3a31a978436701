"""What hwrx needs of the machine that it runs on: its tools, namespaces and files, and how to undo what was done."""
