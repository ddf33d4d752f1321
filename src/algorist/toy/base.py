"""The toy's base model: a small Phi-3, and the plain texts it is trained on.

Like a real base model it can do the parts (arithmetic) and has seen the form (questions with answers), but nobody
has shown it how to reason from one to the other.
"""

from __future__ import annotations

import torch
from transformers import Phi3Config, Phi3ForCausalLM

from algorist.numerics.address import key, rng
from algorist.toy import teacher, world
from algorist.toy.words import SPECIAL


def model(
    vocab_size: int, seed: int, *, hidden_size: int, num_layers: int, num_heads: int, mlp_size: int, context: int
) -> Phi3ForCausalLM:
    """A randomly initialised Phi-3: grouped-query attention, partial rotary embedding, tied embeddings."""
    config = Phi3Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=mlp_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads // 2,
        max_position_embeddings=context,
        original_max_position_embeddings=context,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.75},
        tie_word_embeddings=True,
        initializer_range=0.04,  # the usual 0.02 is for widths of thousands
        bos_token_id=0,
        eos_token_id=SPECIAL.index("<|end|>"),
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, "toy model"))
        return Phi3ForCausalLM(config)


def equations(seed: int, index: int, count: int) -> str:
    """A line of `count` correct equations, each going on from the result before: plain arithmetic text."""
    generator = rng(seed, "toy equations", index)
    value = int(generator.integers(2, world.LARGEST + 1))
    parts = []
    for _ in range(count):
        event = world.change(generator, "", value)
        result = world.apply(value, event)
        parts.append(f"{value} {event.operation} {event.n} = {result}.")
        value = result
    return " ".join(parts)


def diary(seed: int, index: int, most_steps: int) -> str:
    """A diary whose months are told again in another order: text that rewards looking things up."""
    generator = rng(seed, "toy diaries", index)
    steps = int(generator.integers(1, most_steps + 1))
    told = world.story(generator, steps, int(generator.integers(0, 3)))
    again = [f"{month}: {event.text}." for month, event in told.dated()]
    first = [f"{event.text} in {month}." for month, event in told.dated()]
    return " ".join(first + [again[i] for i in generator.permutation(len(again))])


def bare_answer(answer: str) -> str:
    """A response without reasoning."""
    return teacher.PHRASES["final"].format(n=answer)
