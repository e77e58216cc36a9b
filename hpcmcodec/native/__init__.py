"""The kernels from Python: building, loading, the exact operations over them, torch's operator, the self-test."""
