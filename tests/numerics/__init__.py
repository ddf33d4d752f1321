"""Tests of numerics/."""
