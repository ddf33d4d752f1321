"""The mathematics, as pure functions of plain tensors: importable beside torch and numpy only, each with an oracle."""
