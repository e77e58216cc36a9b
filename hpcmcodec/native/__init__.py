"""The compiled kernels from Python: build, loading, exact operations over them, torch's operator, self-test."""
