"""Where the work runs, and how exactly."""

from __future__ import annotations

import ctypes
import sys

import torch
import torch.utils.deterministic


def default() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def settle() -> None:
    """Ask torch for the same numbers every time: a resumed run must equal an undisturbed one bit for bit."""
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it writes each new tensor twice
    torch.backends.cuda.matmul.allow_tf32 = False
    _keep_memory()


def _keep_memory() -> None:
    """Let the C library keep what tensors give back: a micro-batch asks for the same sizes as the one before.

    By default glibc returns large blocks to the system and takes them anew, page by page, which costs a CPU run up to a
    quarter of its time.
    """
    if sys.platform != "linux":
        return
    trim_threshold, mmap_threshold = -1, -3  # of <malloc.h>
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(mmap_threshold, 2**31 - 1)
        library.mallopt(trim_threshold, 2**31 - 1)


def peak_memory() -> int:
    """Bytes: the largest resident set of this process so far, or on a GPU the most memory allocated there."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
