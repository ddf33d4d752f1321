"""The made-up arithmetic world in which recipes/tiny.toml runs: problems, a fallible scripted teacher, a base model."""
