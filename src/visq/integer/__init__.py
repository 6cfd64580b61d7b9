"""The arithmetic of the integer engine and the schema of its programs, in NumPy, without torch."""
