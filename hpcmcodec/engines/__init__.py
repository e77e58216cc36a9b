"""Engines: each runs the transforms and the entropy path of one model on one device."""
