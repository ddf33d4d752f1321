"""The errors a user can mend. Everything else is a bug and shows its traceback.

    AlgoristError
    ├── RecipeError   what was asked for cannot be: a key, a value, a missing file         exit status 2
    ├── RecordError   something stored, or handed in as data, cannot be read               exit status 3
    └── RunError      a run cannot start or cannot go on: other recipe, full disk, NaN     exit status 4

A message says where, what was found, what was expected and what to do, in one or two sentences.
"""


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
