"""The version of hwrx: of the package, and in every manifest."""

__version__ = "0.1.0"
