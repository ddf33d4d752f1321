"""Algorist: from a small base model to a mathematics reasoner, every step written down."""

__version__ = "0.1.0"
