"""Operators with a definition of their own: Bi-WKV4."""
