"""The rules of the four sets, and what of a shard may enter them: everything right, a compact subset, RL prompts.

A set is made in three phases, so that memory is bounded by a shard: `propose` reads the numbers of one shard and says
which rows may enter, `choose` (data/balance.py) looks at the numbers of all shards and says which do, `write` takes the
texts of those from the shard. Whatever is left out on the way is counted by reason. Pairs are in data/pairs.py, the
phases are run by data/sets.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from algorist import store
from algorist.data import copies
from algorist.data.candidates import (
    Choice,
    Drops,
    Proposal,
    Shards,
    cells,
    easier,
    frame,
    keep,
    problems,
    rollouts,
    statements,
    uniforms,
    user_turn,
)
from algorist.errors import RecordError
from algorist.model.chat import Chat
from algorist.numerics.address import key
from algorist.numerics.quotas import draw_keys
from algorist.records import LEVELS, Example, Message, Question, Sample, content_id
from algorist.tokens import Ids, digest

UNLABELLED = "unlabelled"
TOO_LONG = "longer than sequence_length"
LEAK = "quotes a benchmark"


def _check_levels(levels: Collection[str]) -> None:
    if unknown := set(levels) - set(LEVELS):
        raise ValueError(f"levels has {', '.join(sorted(unknown))}. Known here: {', '.join(LEVELS)}.")


@dataclass(frozen=True)
class Midtrain:
    """Stage 1: every rollout that is right, ended by itself and quotes no benchmark, each text once."""

    repetitive: bool = True  # keep what data/repetition.py flags: the paper trains stage 1 on all right rollouts
    near: float = 1.0  # Jaccard similarity from which rollouts of one problem are copies; 1: exact ones only, 2: none
    per_problem: int = 0  # right rollouts of one problem, drawn at random; 0: all

    def __post_init__(self) -> None:
        copies.check(self.near)
        if self.per_problem < 0:
            raise ValueError("per_problem is a number of rollouts, 0 for all.")


@dataclass(frozen=True)
class LevelWeights:
    """How much room a level gets in stage 2, next to the others, as long as its supply lasts."""

    elementary: float = 1.0
    middle: float = 1.0
    high_school: float = 2.0
    college: float = 4.0
    graduate: float = 4.0
    unlabelled: float = 2.0  # problems of no known level

    def of(self, level: str) -> float:
        """The weight of a level as the records spell it."""
        return float(getattr(self, (level or UNLABELLED).replace(" ", "_")))

    def __post_init__(self) -> None:
        if min(self.of(level) for level in ("", *LEVELS)) < 0 or not any(self.of(level) for level in ("", *LEVELS)):
            raise ValueError("a level's weight is 0 or more, and one of them above 0.")


@dataclass(frozen=True)
class Sft:
    """Stage 2: the compact, representative subset of stage 1; the paper prints no rule, this is ours."""

    levels: tuple[str, ...] = ("college", "graduate")  # that count as hard; all where empty
    max_pass_rate: float = 0.75  # a problem of no known level counts as hard up to this share of right rollouts
    keep_easier: float = 0.1  # share of the other problems that stays, so that they are not forgotten
    per_problem: int = 1  # right rollouts of one problem, nearest to its median length in tokens first
    repetitive: bool = False  # keep what data/repetition.py flags
    near: float = 1.0  # the same for what midtrain.near left: only a lower value than there does more
    size: int = 200_000  # examples: the predecessor's figure; 0: all that the other rules leave
    hardness: float = 3.0  # a problem nearly always failed is drawn 1 + hardness times as often as one never failed
    domain_power: float = 0.5  # a domain's room in its level grows with supply to this power; 0: equal, 1: as they come
    level_weights: LevelWeights = LevelWeights()

    def __post_init__(self) -> None:
        _check_levels(self.levels)
        copies.check(self.near)
        if self.per_problem < 1 or self.size < 0 or self.hardness < 0:
            raise ValueError("per_problem must be at least 1, size and hardness 0 or more.")
        if not (0 <= self.keep_easier <= 1 and 0 <= self.max_pass_rate <= 1 and 0 <= self.domain_power <= 1):
            raise ValueError("keep_easier, max_pass_rate and domain_power are shares, 0 to 1 was expected.")


@dataclass(frozen=True)
class Dpo:
    """Stage 3: a right and a wrong rollout of the same problem, told apart by nothing but what makes one right."""

    levels: tuple[str, ...] = ("high school", "college", "graduate")  # whose problems make pairs; all where empty
    max_pass_rate: float = 0.75  # a problem of no known level makes pairs up to this share of right rollouts
    per_problem: int = 2  # pairs of one problem, most similar length first
    max_length_ratio: float = 2.0  # of the two responses of a pair, in tokens
    truncated: bool = False  # reject wrong rollouts that were cut off; what is preferred always ended by itself
    answered: bool = True  # a wrong rollout must state an answer: else the missing box tells it, not the mistake
    repetitive: bool = False  # reject wrong rollouts that data/repetition.py flags
    same_sampler: bool = True  # both of a pair from one model: else a model's manner tells them apart
    balance_lengths: bool = True  # as many pairs with the longer one chosen as rejected, at every length ratio
    size: int = 300_000  # pairs: the predecessor's figure; 0: all that the other rules leave
    max_auc: float = 0.7  # stop where length, format or style alone ranks surely more than this share of pairs

    def __post_init__(self) -> None:
        _check_levels(self.levels)
        if self.per_problem < 1 or self.max_length_ratio < 1 or self.size < 0:
            raise ValueError("per_problem and max_length_ratio must be at least 1 and size 0 or more.")
        if not 0.5 <= self.max_auc <= 1 or not 0 <= self.max_pass_rate <= 1:
            raise ValueError("max_auc must lie in 0.5 to 1 (1: never stop), max_pass_rate in 0 to 1.")


@dataclass(frozen=True)
class Rlvr:
    """Stage 4: the prompts it may sample; which of them suit the policy it measures itself."""

    min_pass_rate: float = 0.1  # of the teacher: an answer never reached in 8 rollouts is more often wrong than hard
    max_pass_rate: float = 1.0  # what is easy for the teacher may be hard for the policy
    unmeasured: bool = False  # keep problems without rollouts: nothing shows that their answer can be reached
    size: int = 0  # prompts, drawn at random; 0: all
    disjoint_from: tuple[str, ...] = ()  # sets whose problems are left out: "sft", "dpo"

    def __post_init__(self) -> None:
        if not 0 <= self.min_pass_rate <= self.max_pass_rate <= 1 or self.size < 0:
            raise ValueError("0 <= min_pass_rate <= max_pass_rate <= 1 was expected, and size 0 or more.")
        if unknown := set(self.disjoint_from) - {"sft", "dpo"}:
            raise ValueError(f'disjoint_from has {", ".join(sorted(unknown))}; "sft" and "dpo" can stand there.')


@dataclass(frozen=True)
class Settings:
    """[curate]"""

    midtrain: Midtrain = Midtrain()
    sft: Sft = Sft()
    dpo: Dpo = Dpo()
    rlvr: Rlvr = Rlvr()


def propose_midtrain(shards: Shards, settings: Settings, seed: int) -> Proposal:
    """Rows that stage 1 learns from: `row` alone, since nothing is left to choose among."""
    table, dropped = _sound(shards, settings.midtrain, seed)
    return Proposal(table.select("row").to_arrow(), dropped)


def propose_sft(shards: Shards, settings: Settings, seed: int) -> Proposal:
    """Rows that stage 2 may learn from, all of them stage 1's: row, level, domain, draw (the greatest come first)."""
    rules = settings.sft
    table, dropped = _sound(shards, settings.midtrain, seed)
    if not rules.repetitive:
        table = keep(table, pl.when(pl.col("repetition") != "").then(pl.lit("repetitive")), dropped)
    stays = {one: key(seed, "keep easier", one) < rules.keep_easier * 2**63 for one in table["problem_id"].unique()}
    table = table.with_columns(pl.Series("stays", [stays[one] for one in table["problem_id"]], pl.Boolean))
    easy = easier(rules.levels, rules.max_pass_rate) & ~pl.col("stays")
    table = keep(table, pl.when(easy).then(pl.lit("easier level")), dropped)
    if rules.near < settings.midtrain.near:
        table = copies.distinct(shards.measures, table, rules.near, dropped)
    away = (pl.col("num_tokens") - pl.col("num_tokens").median().over("problem_id")).abs()
    table = table.with_columns(away.alias("away")).sort("away", "id")
    far = pl.int_range(pl.len()).over("problem_id") >= rules.per_problem
    table = keep(table, pl.when(far).then(pl.lit("further from its problem's median length")), dropped).sort("row")
    weights = 1 + rules.hardness * (1 - table["pass_rate"].fill_null(1.0).to_numpy())
    draws = draw_keys(uniforms(table["id"], seed, "curate", "sft"), weights.tolist())
    table = table.with_columns(pl.Series("draw", draws, pl.Float64))
    return Proposal(table.select("row", "level", "domain", "draw").to_arrow(), dropped)


def propose_rlvr(shards: Shards, settings: Settings, seed: int, others: Mapping[str, Path]) -> Proposal:
    """Problems that stage 4 may ask: row (of problems) and draw. `others`: set → its shard of the same problems."""
    rules = settings.rlvr
    rate = pl.col("pass_rate")
    why = (
        pl.when(pl.col("answer").str.strip_chars() == "")
        .then(pl.lit("no answer to compare with"))
        .when(rate.is_null() & (pl.col("unjudged") > 0))
        .then(pl.lit("answer could not be judged"))
        .when(rate.is_null() & pl.lit(not rules.unmeasured))
        .then(pl.lit("no rollouts"))
        .when(rate < rules.min_pass_rate)
        .then(pl.lit("too hard"))
        .when(rate > rules.max_pass_rate)
        .then(pl.lit("too easy"))
    )
    dropped: Drops = {}
    table = keep(problems(shards), why, dropped)
    for name in rules.disjoint_from:
        taken = frame(others[name], ("problem_id",))["problem_id"].unique()
        table = keep(table, pl.when(pl.col("id").is_in(taken.implode())).then(pl.lit(f"in the set of {name}")), dropped)
    draws = pl.Series("draw", uniforms(table["id"], seed, "curate", "rlvr"), pl.Float64)
    return Proposal(table.with_columns(draws).select("row", "draw").to_arrow(), dropped)


def write_examples(shards: Shards, out: Path, choice: Choice, prompt: str, made_from: str) -> None:
    """Write a shard of the set of stage 1 or 2: the chosen rollouts as conversations, the user's turn from `prompt`."""
    rows = choice.table["row"].to_pylist()
    table = rollouts(shards).filter(pl.col("row").is_in(rows))
    known = statements(shards.problems, table["problem_id"].unique().to_list())
    texts = {row: text.as_py() for row, text in cells(shards.rollouts, "text", rows)}
    records = []
    for line in table.iter_rows(named=True):
        problem = known[line["problem_id"]]
        messages = (user_turn(prompt, problem), Message("assistant", texts.pop(line["row"])))
        identity = content_id("example", line["id"], [message.content for message in messages])
        about: dict[str, Any] = {name: line[name] for name in ("num_tokens", "pass_rate", "domain", "level")}
        about |= {"source": problem.source, "licence": problem.licence}
        records.append(Example(identity, problem.id, line["id"], messages, **about))
    store.write_shard(out.parent, int(out.stem), Example, records, dropped=choice.dropped, made_from=made_from)


def write_questions(shards: Shards, out: Path, choice: Choice, prompt: str, made_from: str) -> None:
    """Write a shard of the set of stage 4: the chosen problems as prompts, with their gold answers."""
    table = problems(shards).filter(pl.col("row").is_in(choice.table["row"].to_pylist()))
    known = statements(shards.problems, table["id"].to_list())
    records = []
    for line in table.iter_rows(named=True):
        problem = known[line["id"]]
        asked = (user_turn(prompt, problem),)
        identity = content_id("question", problem.id, asked[0].content, problem.answer)
        about: dict[str, Any] = {name: line[name] for name in ("pass_rate", "domain", "level")}
        about |= {"source": problem.source, "licence": problem.licence}
        records.append(Question(identity, problem.id, asked, problem.answer, **about))
    store.write_shard(out.parent, int(out.stem), Question, records, dropped=choice.dropped, made_from=made_from)


def samples(shard: Path, measures: Path, chat: Chat, *, sequence_length: int) -> tuple[list[Sample], list[Ids], Drops]:
    """One shard of a set of Examples as what training reads, with the token ids; what is longer than a row is left out.

    Response ids are those stored when the rollout was measured: only the question is tokenised here. The end of turn
    stands behind each, since no Example was cut off.
    """
    examples = store.read_shard(shard, Example)
    responses = response_ids(measures, [one.rollout_id for one in examples])
    prompt_ids = asked(chat)
    kept: list[Sample] = []
    sequences: list[Ids] = []
    for one in examples:
        prompt = prompt_ids(one.messages[0].content)
        ids = joined(prompt, responses[one.rollout_id], (chat.end,))
        if len(ids) <= sequence_length:
            identity = content_id("sample", one.rollout_id, digest([ids]))
            kept.append(Sample(identity, one.problem_id, one.rollout_id, len(ids), len(prompt)))
            sequences.append(ids)
    return kept, sequences, ({TOO_LONG: len(examples) - len(kept)} if len(kept) < len(examples) else {})


def asked(chat: Chat) -> Callable[[str], tuple[int, ...]]:
    """What turns a user's turn of a set, in which the prompt's words stand already, into its ids; remembers them."""
    return functools.cache(replace(chat, prompt="{problem}").prompt_ids)


def joined(*parts: Sequence[int] | Ids) -> Ids:
    """Prompt, response and end of turn as one document."""
    return np.concatenate([np.asarray(part, np.int32) for part in parts])


def response_ids(measures: Path, ids: Collection[str]) -> dict[str, Ids]:
    """rollout id → the token ids that were stored for it. Raises RecordError where one has none."""
    known = frame(measures, ("rollout_id",))["rollout_id"]
    wanted = set(ids)
    rows = [row for row, one in enumerate(known) if one in wanted]
    found = {known[row]: tokens.values.to_numpy().copy() for row, tokens in cells(measures, "tokens", rows)}
    if lacking := wanted - found.keys():
        raise RecordError(
            f"{measures}: holds no measure of rollout {min(lacking)}, which the set was drawn from. "
            f"Delete the folder {measures.parent} to make it again."
        )
    return found


def _sound(shards: Shards, rules: Midtrain, seed: int) -> tuple[pl.DataFrame, Drops]:
    """Rejection sampling: the rollouts of a shard that were verified right and ended by themselves."""
    dropped: Drops = {}
    why = (
        pl.when(~pl.col("right").fill_null(False))
        .then(pl.col("reason"))
        .when(pl.col("finish") != "stop")  # it never ended, so it cannot teach where to end
        .then(pl.lit("right but cut off"))
        .when(pl.col("leak") != "")
        .then(pl.lit(LEAK))
        .when(pl.col("num_tokens") == 0)
        .then(pl.lit("empty response"))
        .when((pl.col("repetition") != "") & pl.lit(not rules.repetitive))
        .then(pl.lit("repetitive"))
    )
    table = copies.distinct(shards.measures, keep(rollouts(shards), why, dropped), rules.near, dropped)
    if rules.per_problem:
        draws = pl.Series("draw", uniforms(table["id"], seed, "curate", "midtrain"), pl.Float64)
        table = table.with_columns(draws).sort("draw", descending=True)
        over = pl.int_range(pl.len()).over("problem_id") >= rules.per_problem
        table = keep(table, pl.when(over).then(pl.lit("its problem has enough rollouts")), dropped).sort("row")
    return table, dropped
