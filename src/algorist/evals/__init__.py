"""Scores: what each stage's checkpoint gets right on the same problems, with intervals, and the report of it."""
