"""Exact arithmetic: what decoding depends on, with the same bits in numpy and torch, on every IEEE-754 machine."""
