"""The errors a user can mend. Everything else is a bug and shows its traceback.

    AlgoristError
    ├── RecipeError   what was asked for cannot be: a key, a value, a missing file         exit status 2
    ├── RecordError   something stored, or handed in as data, cannot be read               exit status 3
    └── RunError      a run cannot start or cannot go on: other recipe, full disk, NaN     exit status 4

A message says where, what was found, what was expected and what to do, in one or two sentences.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path


class AlgoristError(Exception):
    """What the command line prints as one line; `exit_status` is what the process returns."""

    exit_status = 1


class RecipeError(AlgoristError):
    """What the user asked for cannot be done as written."""

    exit_status = 2


class RecordError(AlgoristError):
    """A stored record or an input file cannot be read."""

    exit_status = 3


class RunError(AlgoristError):
    """A run cannot start or cannot go on; what is finished stays as it is."""

    exit_status = 4


_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """Turn 'no space left' into an error that says what to do; every other exception passes through."""
    try:
        yield
    except Exception as error:
        # safetensors and tokenizers are written in Rust and raise no OSError: only the text has the number.
        in_rust = any(str(error).endswith(f"(os error {number})") for number in _FULL)
        if not in_rust and not (isinstance(error, OSError) and error.errno in _FULL):
            raise
        raise RunError(
            f"{path}: the disk is full. Free some space and run the same command again; what is finished is kept."
        ) from error
