"""Uses the C++ extension from NumPy, without torch: instruction sets, memory, single operations."""
