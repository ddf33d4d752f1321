"""Verify: is the answer of a rollout the gold one? Read it out (extract), compare it (equal), survive it (pool)."""
