"""The embedded sampler: continuous batching over a cache of pages, with the weights of the policy in training.

Sequences are decoded together; a finished one makes room at once (generate/batching.py). Each sample draws from its own
addressed stream, so the same request gives the same response whatever runs beside it, except where the rounding of a
differently shaped matrix product tips the balance between two tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

from algorist.generate.batching import Batching, How
from algorist.generate.sampling import Request, Response, Sampling, never
from algorist.model.policy import Policy


def stream(
    policy: Policy,
    requests: Sequence[Request],
    sampling: Sampling,
    *,
    end_ids: Collection[int],
    num_slots: int = 128,
    enough: Callable[[], bool] = never,
    how: How | None = None,
) -> Iterator[tuple[int, Response]]:
    """(index of the request, response), each as it finishes.

    Args:
        policy     samples; its weights must not change before the last response. In the mode it was in afterwards
        end_ids    tokens that end a response
        num_slots  sequences decoded together
        enough     asked after each response and each step; once true, the rest are given as they stand, "unfinished"

    Raises:
        RunError where the cache has no room for the longest sequence that may come.
    """
    over = False
    with _sampler(policy, requests, sampling, end_ids, num_slots, how or How()) as sampler:
        for answers in sampler.turns():
            for answer in answers:
                yield answer
                over = enough() or over
            if over or enough():
                break
        yield from sampler.rest()


def sample(
    policy: Policy,
    requests: Sequence[Request],
    sampling: Sampling,
    *,
    end_ids: Collection[int],
    num_slots: int = 128,
    progress: Callable[[int], object] = lambda _: None,
    how: How | None = None,
) -> list[Response]:
    """One response for each request, in order: `stream` to its end.

    Args:
        progress  called after each step with the number of responses finished by it; it may raise to give up
    """
    found: dict[int, Response] = {}
    with _sampler(policy, requests, sampling, end_ids, num_slots, how or How()) as sampler:
        for answers in sampler.turns():
            found |= answers
            progress(len(answers))
    return [found[index] for index in range(len(requests))]


@contextmanager
def _sampler(
    policy: Policy,
    requests: Sequence[Request],
    sampling: Sampling,
    end_ids: Collection[int],
    num_slots: int,
    how: How,
) -> Iterator[Batching]:
    """A sampler over a cache of its own; the policy is left in the mode that it was in."""
    was_training = policy.training
    policy.eval()
    try:
        yield Batching(policy, requests, sampling, frozenset(end_ids), num_slots=num_slots, how=how)
    finally:
        policy.train(was_training)
