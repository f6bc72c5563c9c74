"""The command line: arguments to one library call each."""

from e2bench.cli.commands import app
from e2bench.cli.entry import main

__all__ = ["app", "main"]
