"""Slow and obvious twins of numerics/: loops over Python floats, which are double precision, and no torch."""
