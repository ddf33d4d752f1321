"""Algorist: from a small base model to a mathematics reasoner, every step written down."""

import os

# Torch's threads wait for the next product by spinning, 3 ms by default, and whoever else wants the core waits:
# sampling's attention, the verifier. 0.1 ms is enough (bench/decode.py). Read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__version__ = "0.1.0"
