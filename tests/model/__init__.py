"""Tests of model/ and of the sampler that shares its attention."""
