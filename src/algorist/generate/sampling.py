"""What every engine is told, and what every engine gives back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How to sample; temperature 0 takes the likeliest token."""

    temperature: float = 1.0
    top_p: float = 1.0  # sample among the likeliest tokens that hold this share of the probability
    max_tokens: int = 1024  # of the response; a longer one is cut and finishes with "length"

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature = {self.temperature} is negative, 0 or more was expected")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p} does not lie in (0, 1]")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens = {self.max_tokens} leaves no room for a response")


@dataclass(frozen=True)
class Request:
    """One response wanted. The same key gives the same response whatever is sampled beside it, up to rounding.

    A response that was begun by another policy, or at another temperature, goes on where it was left: token t of it is
    drawn with random number t of the key in either case.
    """

    prompt: tuple[int, ...]
    key: int  # numerics/address.py
    said: tuple[int, ...] = ()  # tokens of the response that were sampled before
    logprobs: tuple[float, ...] = ()  # of `said`, at the temperatures that they were sampled at
    max_tokens: int = 0  # of the response, what was said before included; 0: the sampling's

    def limit(self, sampling: Sampling) -> int:
        """The most tokens that the response may have."""
        return self.max_tokens or sampling.max_tokens

    def over(self, sampling: Sampling, end_ids: Collection[int]) -> str:
        """How the response was finished before it came to an engine: "stop", "length", or empty where it goes on."""
        return over(self.said, self.limit(sampling), end_ids)


def over(said: Sequence[int], limit: int, end_ids: Collection[int]) -> str:
    """How what was said is finished: "stop", "length", or empty where it goes on."""
    if said and said[-1] in end_ids:
        return "stop"
    return "length" if len(said) >= limit else ""


def never() -> bool:
    """For an engine's `enough`: all responses are wanted."""
    return False


@dataclass(frozen=True)
class Response:
    """One response as token ids, the end-of-turn token included where it ended by itself."""

    tokens: tuple[int, ...]  # with what had been said before
    logprobs: tuple[float, ...]  # of `tokens` at the sampling temperature, before top_p
    finish: str  # "stop", "length" or "unfinished": given up, to be gone on with
