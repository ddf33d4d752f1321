"""Where the work runs, and how exactly."""

from __future__ import annotations

import torch


def default() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def settle() -> None:
    """Ask torch for the same numbers every time: a resumed run must equal an undisturbed one bit for bit."""
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    torch.backends.cuda.matmul.allow_tf32 = False


def peak_memory() -> int:
    """Bytes: the largest resident set of this process so far, or on a GPU the most memory allocated there."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
