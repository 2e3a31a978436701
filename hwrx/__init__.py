"""hwrx: how packets reach programs, and what each stage and copy on the way costs."""

__version__ = "0.1.0"
