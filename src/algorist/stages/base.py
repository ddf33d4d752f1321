"""Stage 0 of the toy recipe: the base model itself, by next-token prediction on plain text.

It exists only where the recipe says `[model] base = "toy"`. Plain arithmetic and problems with bare answers make a
model that knows the parts and the form, and gets few problems right: what a base model is. What the benchmarks ask is
left out here too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from algorist import store, tokens
from algorist.data import decontaminate, sources
from algorist.numerics.address import rng
from algorist.records import Sample, content_id
from algorist.stage import Run, Stage, Training
from algorist.stages import midtrain
from algorist.toy import base, world


@dataclass(frozen=True)
class Settings:
    """[base], beside the loop's keys; the shape of the model and the size of its corpus"""

    hidden_size: int = 128  # width of the model
    num_layers: int = 4  # depth
    num_heads: int = 4  # half as many key heads
    mlp_size: int = 384  # width inside the MLP
    context: int = 512  # tokens
    equation_lines: int = 5_000  # of plain arithmetic
    equations_per_line: int = 8  # each goes on from the result before
    diaries: int = 3_000  # whose months are told twice
    bare_answers: int = 1_000  # problems with an answer and no reasoning
    most_steps: int = 6  # in a diary or problem
    sequence_length: int = 512  # tokens of a row
    packing: bool = True  # several texts share a row
    epochs: int = 1  # times that the corpus is read

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.num_heads % 2 or self.hidden_size % self.num_heads:
            raise ValueError("num_heads must be even, above 0 and divide hidden_size.")
        if not 1 <= self.most_steps <= 8:
            raise ValueError("most_steps lies in 1..8.")


def curate(run: Run) -> store.Manifest:
    """Lines of equations, diaries told twice, and problems answered at once."""
    settings, chat = run.settings, run.chat
    lines = [base.equations(run.seed, i, settings.equations_per_line) for i in range(settings.equation_lines)]
    lines += [base.diary(run.seed, i, settings.most_steps) for i in range(settings.diaries)]
    bos: tuple[int, ...] = (chat.tokenizer.bos_token_id,)
    texts = [("text", bos, chat.response_ids(line, ended=False)) for line in lines]
    data = run.recipe.of("data", sources.Settings)
    asked = sources.read_questions(run.root / "benchmarks", list(data.benchmarks))
    told = world.problems(run.seed, "base", settings.bare_answers, range(1, settings.most_steps + 1))
    problems, _ = decontaminate.decontaminate(told, asked, data.ngram, data.fuzzy)
    for one in problems:
        texts.append((one.id, chat.prompt_ids(one.statement), chat.response_ids(base.bare_answer(one.answer))))
    samples, sequences = [], []
    for place in rng(run.seed, "base corpus").permutation(len(texts)):
        problem_id, prompt, response = texts[place]
        if len(prompt) + len(response) <= settings.sequence_length:
            ids = np.array(prompt + response, np.int32)
            identity = content_id("sample", problem_id, tokens.digest([ids]))
            samples.append(Sample(identity, problem_id, "", len(ids), len(prompt)))
            sequences.append(ids)
    too_long = len(texts) - len(samples)
    dropped = {"in a benchmark": len(told) - len(problems), "longer than sequence_length": too_long}
    return tokens.write(run.data, Sample, samples, sequences, dropped=dropped)


plan, steps, loss = midtrain.plan, midtrain.steps, midtrain.loss
STAGE = Stage("base", Settings, Training(batch_size=4), (), curate, plan, steps, loss)
