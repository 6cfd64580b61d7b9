"""Runs programs on a GPU; needs torch and Triton, which are imported when an engine is made."""
