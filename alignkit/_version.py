"""The version of the core, which plugins ask for and keys count."""

__version__ = "0.1.0"
