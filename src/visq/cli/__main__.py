"""Runs `python -m visq.cli`."""

from visq.cli import main

main()
