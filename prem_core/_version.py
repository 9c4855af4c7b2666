"""The one place where the distribution's version is written."""

__version__ = "0.1.0"
