"""Who answers: a policy through the native sampler, or the scripted teacher of the toy world.

Both know two things: how to read a prompt, and how to say one answer for each (prompt, seed). An answer is a function
of model, prompt, seed and sampling settings alone, up to the rounding of differently shaped matrix products.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from algorist.errors import RecipeError
from algorist.generate.sampling import Request, Response, Sampling
from algorist.model.chat import Chat, load_tokenizer
from algorist.numerics.address import key, rng
from algorist.serving.wire import Asked, Prompt, Refusal, Said, cut
from algorist.toy import teacher as toy

if TYPE_CHECKING:  # the toy teacher is served where there is no torch
    from algorist.model.policy import Policy

TOY = "toy"  # a name as in [model] base, and no folder
_TOKENS = 4096  # of a response, at most, where nobody says: the cache is laid out for so many


@dataclass(frozen=True)
class Ready:
    """A prompt as the model reads it."""

    ids: tuple[int, ...]  # empty for the toy teacher, which reads words
    text: str  # empty for a policy
    length: int


@dataclass(frozen=True)
class Wanted:
    """One choice wanted."""

    prompt: Ready
    seed: int
    stop: tuple[str, ...] = ()
    logprobs: bool = False


@dataclass(frozen=True)
class PolicyModel:
    """A policy with its tokenizer."""

    policy: Policy
    tokenizer: Any
    chat: Chat | None  # None where the tokenizer has no chat template: it can only go on with a text
    stops: frozenset[int]
    cap: int  # tokens of a response, at most
    context: int  # tokens of prompt and response together
    num_slots: int
    pieces: dict[int, str] = field(default_factory=dict)  # text of each token asked for so far
    lock: threading.Lock = field(default_factory=threading.Lock)  # a tokenizer serves one thread at a time

    @property
    def default_tokens(self) -> int:
        """Of a response, where a chat does not say."""
        return min(self.cap, max(1, self.context // 2))  # one number for all prompts, so that they share a call

    def ready(self, prompt: Prompt, sampling: Sampling, asked: Asked) -> Ready:
        """The prompt in token ids. Raises Refusal where it cannot be rendered or leaves no room for the response."""
        with self.lock:
            ids = self._ids(prompt)
        if not ids or max(ids) >= self.policy.model.config.vocab_size:
            raise Refusal(400, "The prompt is empty, or holds an id beyond the vocabulary.", field="prompt")
        if others := sorted(set(asked.stop_ids) - self.stops):
            said = f"Token {others[0]} does not end a response of this model; {_listed(self.stops)} does."
            raise Refusal(400, said, field="stop_token_ids")
        if sampling.max_tokens > self.cap:
            said = f"max_tokens = {sampling.max_tokens} is more than the {self.cap} that this server gives."
            raise Refusal(400, said, field="max_tokens")
        if len(ids) + sampling.max_tokens > self.context:
            said = (
                f"This model's maximum context length is {self.context} tokens, but the prompt has {len(ids)} and "
                f"max_tokens is {sampling.max_tokens}. Shorten one of them."
            )
            raise Refusal(400, said, field="max_tokens", code="context_length_exceeded")
        return Ready(ids, "", len(ids))

    def say(self, wanted: Sequence[Wanted], sampling: Sampling, progress: Callable[[int], object]) -> list[Said]:
        """One answer for each. `progress` may raise to give the whole call up."""
        from algorist.generate import native

        requests = [Request(one.prompt.ids, key("serve", one.prompt.ids, one.seed)) for one in wanted]
        responses = native.sample(
            self.policy, requests, sampling, end_ids=self.stops, num_slots=self.num_slots, progress=progress
        )
        with self.lock:
            return [self._said(response, one) for response, one in zip(responses, wanted, strict=True)]

    def _said(self, response: Response, one: Wanted) -> Said:
        tokens, finish = response.tokens, response.finish
        text = self._text(tokens)
        place = cut(text, one.stop)
        if place is not None:
            tokens, finish, text = tokens[: self._needed(tokens, one.stop)], "stop", text[:place]
        pieces = tuple(map(self._piece, tokens)) if one.logprobs else ()
        return Said(text, finish, len(tokens), tokens, response.logprobs[: len(tokens)], pieces)

    def _ids(self, prompt: Prompt) -> tuple[int, ...]:
        if isinstance(prompt, tuple):
            return prompt
        bos = self.tokenizer.bos_token
        if isinstance(prompt, str):
            # A text that was rendered already begins with its BOS; two would be one too many.
            begun = bool(bos) and prompt.startswith(bos)
            return tuple(self.tokenizer(prompt, add_special_tokens=not begun).input_ids)
        if self.chat is None:
            raise Refusal(400, "This model has no chat template: ask /v1/completions.", field="messages")
        try:
            text = self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template raises what it likes at roles it does not know
            raise Refusal(400, f"The chat template refuses these messages ({error}).", field="messages") from error
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _text(self, tokens: tuple[int, ...]) -> str:
        body = tokens[:-1] if tokens and tokens[-1] in self.stops else tokens
        return self.tokenizer.decode(body, skip_special_tokens=False)  # type: ignore[no-any-return]

    def _needed(self, tokens: tuple[int, ...], stop: Sequence[str]) -> int:
        """How many tokens it takes until a stop string is said."""
        low, high = 1, len(tokens)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if cut(self._text(tokens[:middle]), stop) is not None else (middle + 1, high)
        return low

    def _piece(self, token: int) -> str:
        if token not in self.pieces:
            self.pieces[token] = self.tokenizer.decode([token], skip_special_tokens=False)
        return self.pieces[token]


@dataclass(frozen=True)
class ToyModel:
    """The scripted teacher of the toy world; its tokens are words."""

    habits: toy.Habits = field(default_factory=toy.Habits)
    num_slots: int = 64
    default_tokens: int = 1024

    def ready(self, prompt: Prompt, sampling: Sampling, asked: Asked) -> Ready:
        """The statement is the last message, or the text. Raises Refusal at token ids: the teacher has none."""
        if isinstance(prompt, tuple) or asked.logprobs or asked.token_ids:
            raise Refusal(400, "The toy teacher has neither token ids nor log-probabilities.")
        statement = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        return Ready((), statement, len(statement.split()))

    def say(self, wanted: Sequence[Wanted], sampling: Sampling, progress: Callable[[int], object]) -> list[Said]:
        """One answer for each."""
        found = []
        for one in wanted:
            generator = rng("toy teacher", one.seed, one.prompt.text, sampling.temperature)
            text, finish = toy.respond(one.prompt.text, generator, self.habits, sampling.max_tokens)
            place = cut(text, one.stop)
            text, finish = (text, finish) if place is None else (text[:place], "stop")
            found.append(Said(text, finish, len(text.split())))
            progress(1)
        return found


Model = PolicyModel | ToyModel


def _listed(tokens: frozenset[int]) -> str:
    return " or ".join(map(str, sorted(tokens))) or "none"


def open_model(source: str, *, precision: str = "float32", max_tokens_cap: int = 0, num_slots: int = 32) -> Model:
    """The model of a folder in the Hugging Face layout or of a hub name, or the toy teacher.

    Args:
        max_tokens_cap  the longest response given, in tokens; 0: half the model's context, at most 4,096
        num_slots       sequences decoded together

    Raises:
        RecipeError where there is no such model or precision.
    """
    if precision not in ("float32", "bfloat16"):
        raise RecipeError(f"serve: precision {precision} is not known. Choose float32 or bfloat16.")
    if source == TOY:
        return ToyModel()
    tokenizer = load_tokenizer(source)
    chat = Chat.of(tokenizer, "{problem}") if getattr(tokenizer, "chat_template", None) else None
    eos = tokenizer.eos_token_id
    stops = chat.stops if chat else frozenset(() if eos is None else (eos,))

    from algorist.model.checkpoints import open_policy

    policy = open_policy(source, precision=precision).eval()
    context = int(getattr(policy.model.config, "max_position_embeddings", 0) or 2**20)
    return PolicyModel(
        policy, tokenizer, chat, stops, max_tokens_cap or min(_TOKENS, max(1, context // 2)), context, num_slots
    )
