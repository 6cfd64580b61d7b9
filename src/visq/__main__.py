"""Runs the command line: `python -m visq` is `visq`."""

from visq.cli import main

main()
