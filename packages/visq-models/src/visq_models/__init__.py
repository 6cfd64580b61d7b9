"""Holds the larger networks that were trained for visq, which finds their weights here by name."""
