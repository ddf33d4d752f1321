"""The embedded sampler: continuous batching over a cache of slots, with the weights of the policy in training.

Active sequences always fill the first slots. A finished one makes room at once: a waiting request is prefilled into
its slot, or, when none waits, the last active sequence moves there, so that the tail of a batch runs narrower and
faster. Requests of one prompt that start together share its prefill.

Each sample draws from its own addressed stream, so the same request gives the same response whatever runs beside
it, except where the rounding of a differently shaped matrix product tips the balance between two tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from algorist.generate.sampling import Request, Response, Sampling
from algorist.model.attention import Decode, Documents, Prefill, Slots
from algorist.model.policy import Policy
from algorist.numerics.address import uniforms

_REFILL = 16  # prefill when this many slots are free: fewer, larger prefills cost less than many small ones


@torch.inference_mode()
def sample(
    policy: Policy,
    requests: Sequence[Request],
    sampling: Sampling,
    *,
    end_ids: Collection[int],
    num_slots: int = 128,
    progress: Callable[[int], object] = lambda _: None,
) -> list[Response]:
    """One response for each request, in order.

    Args:
        policy     samples; left in the mode it was in
        end_ids    tokens that end a response
        num_slots  sequences decoded together
        progress   called with the number of responses finished since the last call
    """
    if not requests:
        return []
    was_training = policy.training
    policy.eval()
    try:
        return _Sampler(policy, requests, sampling, end_ids, min(num_slots, len(requests))).run(progress)
    finally:
        policy.train(was_training)


class _Sampler:
    """The state of one call: which request sits in which slot, and what each has said so far."""

    def __init__(
        self, policy: Policy, requests: Sequence[Request], sampling: Sampling, end_ids: Collection[int], width: int
    ) -> None:
        device = policy.device
        longest = max(len(request.prompt) for request in requests)
        self.policy, self.requests, self.sampling = policy, requests, sampling
        self.end_ids = torch.tensor(sorted(end_ids), device=device)
        self.slots = Slots(policy.model.config.num_hidden_layers, width, longest + sampling.max_tokens, device)
        self.width = width
        self.waiting = deque(range(len(requests)))
        self.owner: list[int] = []  # active slot → request
        self.keys = torch.tensor([request.key for request in requests], device=device)
        self.last = torch.zeros(width, dtype=torch.int64, device=device)  # token to feed next, by slot
        self.counts = torch.zeros(width, dtype=torch.int64, device=device)  # tokens said so far, by slot
        self.said = torch.zeros(width, sampling.max_tokens, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(width, sampling.max_tokens, device=device)
        self.done: dict[int, Response] = {}

    def run(self, progress: Callable[[int], object]) -> list[Response]:
        while self.owner or self.waiting:
            free = self.width - len(self.owner)
            if self.waiting and (free >= min(_REFILL, self.width) or free >= len(self.waiting)):
                self._admit(min(free, len(self.waiting)))
            else:
                self._step()
            progress(self._retire())
        return [self.done[index] for index in range(len(self.requests))]

    def _admit(self, count: int) -> None:
        """Prefill `count` waiting requests into the next slots and draw their first tokens."""
        device = self.last.device
        indices = [self.waiting.popleft() for _ in range(count)]
        first = len(self.owner)
        self.owner += indices
        home: dict[tuple[int, ...], int] = {}  # prompt → the slot it is prefilled into
        for place, index in enumerate(indices, first):
            home.setdefault(self.requests[index].prompt, place)
        lengths = torch.tensor([len(prompt) for prompt in home], device=device)
        places = torch.cat([torch.arange(len(prompt), device=device) for prompt in home])
        slot = torch.repeat_interleave(torch.tensor(list(home.values()), device=device), lengths)
        ends = lengths.cumsum(0)
        states = self.policy.trunk(
            torch.tensor([token for prompt in home for token in prompt], device=device),
            places,
            documents=Documents.of((0, *ends.tolist()), device),
            prefill=Prefill(self.slots, slot, places),
        )
        logits = self.policy.logits(states[ends - 1])
        self.slots.lengths[torch.tensor(list(home.values()), device=device)] = lengths
        rank = {prompt: row for row, prompt in enumerate(home)}
        prompts = [self.requests[index].prompt for index in indices]
        copied = [(home[p], s) for s, p in enumerate(prompts, first) if home[p] != s]
        if copied:
            source, target = torch.tensor(copied, device=device).T
            self.slots.copy(source, target, int(lengths.max()))
        fresh = torch.arange(first, first + count, device=device)
        self.counts[fresh] = 0
        self._draw(fresh, logits[[rank[p] for p in prompts]])

    def _step(self) -> None:
        """Feed the last token of every active sequence and draw the next."""
        active = torch.arange(len(self.owner), device=self.last.device)
        place = self.slots.lengths[active]
        longest = int(place.max()) + 1
        mask = torch.arange(longest, device=place.device) <= place[:, None]
        decode = Decode(self.slots, place, mask[:, None, None], longest)
        states = self.policy.trunk(self.last[active], place, decode=decode)
        self.slots.lengths[active] += 1
        self._draw(active, self.policy.logits(states))

    def _draw(self, slots: Tensor, logits: Tensor) -> None:
        """Draw one token for each of `slots` (n,) from `logits` (n, V) and note it."""
        counts = self.counts[slots]
        requests = torch.tensor([self.owner[slot] for slot in slots.tolist()], device=slots.device)
        tokens, logprobs = draw(logits, uniforms(self.keys[requests], counts), self.sampling)
        self.said[slots, counts] = tokens
        self.logprobs[slots, counts] = logprobs
        self.last[slots] = tokens
        self.counts[slots] = counts + 1

    def _retire(self) -> int:
        """Take finished sequences out and move the last active ones into their slots."""
        active = len(self.owner)
        ended = torch.isin(self.last[:active], self.end_ids)
        over = ended | (self.counts[:active] >= self.sampling.max_tokens)
        if not over.any():
            return 0
        gone = over.nonzero()[:, 0].tolist()
        for slot in gone:
            count = int(self.counts[slot])
            finish = "stop" if bool(ended[slot]) else "length"
            tokens, logprobs = self.said[slot, :count].tolist(), self.logprobs[slot, :count].tolist()
            self.done[self.owner[slot]] = Response(tuple(tokens), tuple(logprobs), finish)
        remaining = active - len(gone)
        holes = [slot for slot in gone if slot < remaining]
        movers = [slot for slot in range(remaining, active) if slot not in set(gone)]
        if holes:
            source = torch.tensor(movers, device=self.last.device)
            target = torch.tensor(holes, device=self.last.device)
            self.slots.copy(source, target, int(self.slots.lengths[source].max()))
            for state in (self.last, self.counts, self.said, self.logprobs):
                state[target] = state[source]
            for mover, hole in zip(movers, holes, strict=True):
                self.owner[hole] = self.owner[mover]
        del self.owner[remaining:]
        return len(gone)


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draw tokens by inverting the cumulative distribution at one uniform number each.

    Args:
        logits   (n, V) float32
        uniform  (n,) float64 in [0, 1)

    Returns:
        tokens (n,) int64 and their log-probabilities (n,) at the sampling temperature, before top_p; at
        temperature 0 the likeliest tokens, with log-probabilities at temperature 1.
    """
    logprobs = torch.log_softmax(logits / (sampling.temperature or 1.0), dim=1)
    if sampling.temperature == 0:
        tokens = logprobs.argmax(1)
    elif sampling.top_p < 1:
        ordered, places = logprobs.exp().to(torch.float64).sort(dim=1, descending=True, stable=True)
        total = ordered.cumsum(1)
        ordered[total - ordered >= sampling.top_p] = 0  # the likeliest token always stays
        tokens = places.gather(1, _invert(ordered.cumsum(1), uniform))[:, 0]
    else:
        tokens = _invert(logprobs.exp().to(torch.float64).cumsum(1), uniform)[:, 0]
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


def _invert(cumulative: Tensor, uniform: Tensor) -> Tensor:
    """(n, 1) first place whose cumulative weight exceeds the uniform share of the total."""
    return torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True).clamp(
        max=cumulative.shape[1] - 1
    )
