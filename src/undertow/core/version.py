"""The package's version, here so that nothing below the front door imports it."""

__version__ = "0.1.0"
