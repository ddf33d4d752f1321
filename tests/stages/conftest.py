"""The taught model and a pool of verifiers, once for all tests of stage 4."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from algorist.verify.pool import Pool
from stages import taught


@pytest.fixture(scope="session")
def parent(tmp_path_factory: pytest.TempPathFactory) -> taught.Parent:
    """See `taught.parent`."""
    return taught.parent(tmp_path_factory.mktemp("parent") / "checkpoint")


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """One worker."""
    with Pool(workers=1) as shared:
        yield shared
