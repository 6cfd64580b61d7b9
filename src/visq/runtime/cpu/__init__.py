"""Runs programs on the C++ engine."""
