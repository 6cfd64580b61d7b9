"""Holds the `visq` command. Commands are thin: they parse, call the API and print."""

from visq.cli.main import main

__all__ = ["main"]
