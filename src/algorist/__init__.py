"""Algorist: from a small base model to a mathematics reasoner, every step written down."""

import os

# Torch's threads wait for the next product by spinning, a hundred milliseconds on end, and whoever else wants the core
# meanwhile has to wait: sampling's attention and the verifier. So they spin 50 microseconds; read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__version__ = "0.1.0"
