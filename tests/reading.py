"""How much this process has read from files, for tests of what is not read."""

from __future__ import annotations

from pathlib import Path

import pytest

_COUNTS = Path("/proc/self/io")
counted = pytest.mark.skipif(not _COUNTS.exists(), reason="only Linux counts what a process reads")


def bytes_read() -> int:
    """What this process has asked the system to read so far, from files and caches alike."""
    lines = _COUNTS.read_text(encoding="utf-8").splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])
