"""Pairs: a right and a wrong rollout of the same problem, of similar length, each rollout used once.

What is preferred must be told by what makes a rollout right and by nothing else, so everything else is made equal as
far as it goes: the problem, the model, the length, that an answer is given and that the response ended. What only the
rules call wrong, though a judge was asked, is never rejected: the rules may have misread a right answer. How well form
alone still tells the two apart is measured on the finished set (data/leakage.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from algorist import store
from algorist.data.candidates import (
    Choice,
    Drops,
    Proposal,
    Shards,
    cells,
    easier,
    frame,
    keep,
    rollouts,
    statements,
    uniforms,
    user_turn,
)
from algorist.data.curate import LEAK, TOO_LONG, Dpo, Settings, asked, joined, response_ids
from algorist.model.chat import Chat
from algorist.records import Message, Pair, Preference, content_id
from algorist.tokens import Ids, digest
from algorist.verify.judge import CONFLICT, UNDECIDED


def propose(shards: Shards, settings: Settings, seed: int) -> Proposal:
    """The pairs of one shard: chosen and rejected (rows of rollouts), their tokens, place in the problem, and draw.

    `dropped` counts rollouts: two for each pair and what is counted there make all rollouts of the shard.
    """
    rules = settings.dpo
    dropped: Drops = {}
    table = keep(rollouts(shards), _unfit(rules), dropped)
    group = ["problem_id", "sampler"] if rules.same_sampler else ["problem_id"]
    where = " and ".join(name.removesuffix("_id") for name in group)
    has_right, has_wrong = pl.col("right").any().over(group), (~pl.col("right")).any().over(group)
    lonely = (
        pl.when(~has_right)
        .then(pl.lit(f"no right rollout of its {where}"))
        .when(~has_wrong)
        .then(pl.lit(f"no wrong rollout of its {where}"))
    )
    table = keep(table, lonely, dropped)
    similar = _similar(table, group, rules.max_length_ratio)
    matched = pl.concat([similar["row"], similar["row_wrong"]])
    unlike = (
        pl.when(pl.col("row").is_in(matched.implode()))
        .then(None)
        .when(pl.col("right"))
        .then(pl.lit("no wrong rollout of similar length"))
        .otherwise(pl.lit("no right rollout of similar length"))
    )
    table = keep(table, unlike, dropped)
    found = _matched(similar, rules.per_problem)
    if spare := len(table) - 2 * len(found):
        dropped["its problem has enough pairs"] = spare
    draws = uniforms((f"{a} {b}" for a, b in found.select("id", "id_wrong").rows()), seed, "curate", "dpo")
    columns = {"row": "chosen", "row_wrong": "rejected", "num_tokens": "chosen_tokens", "place": "place"}
    columns |= {"num_tokens_wrong": "rejected_tokens"}
    named = found.select(pl.col(old).alias(new) for old, new in columns.items())
    return Proposal(named.with_columns(pl.Series("draw", draws, pl.Float64)).to_arrow(), dropped)


def write(shards: Shards, out: Path, choice: Choice, prompt: str, made_from: str) -> None:
    """Write a shard of the set of stage 3: the chosen pairs as conversations, the user's turn from `prompt`."""
    table = rollouts(shards)
    chosen, rejected = choice.table["chosen"].to_pylist(), choice.table["rejected"].to_pylist()
    texts = {row: text.as_py() for row, text in cells(shards.rollouts, "text", [*chosen, *rejected])}
    lines = {line["row"]: line for line in table.filter(pl.col("row").is_in([*texts])).iter_rows(named=True)}
    known = statements(shards.problems, {line["problem_id"] for line in lines.values()})
    records = []
    for right, wrong in ((lines[a], lines[b]) for a, b in zip(chosen, rejected, strict=True)):
        problem = known[right["problem_id"]]
        question = user_turn(prompt, problem)
        answers = [Message("assistant", texts[line["row"]]) for line in (right, wrong)]
        identity = content_id("preference", right["id"], wrong["id"], *(m.content for m in (question, *answers)))
        about: dict[str, Any] = {name: right[name] for name in ("pass_rate", "domain", "level")}
        about |= {"source": problem.source, "licence": problem.licence, "rejected_reason": wrong["reason"]}
        about |= {"chosen_tokens": right["num_tokens"], "rejected_tokens": wrong["num_tokens"]}
        turns = ((question,), (answers[0],), (answers[1],))
        records.append(Preference(identity, problem.id, right["id"], wrong["id"], *turns, **about))
    store.write_shard(out.parent, int(out.stem), Preference, records, dropped=choice.dropped, made_from=made_from)


def token_pairs(
    shard: Path, shards: Shards, chat: Chat, *, sequence_length: int
) -> tuple[list[Pair], list[Ids], Drops]:
    """One shard of a set of Preferences as what training reads, with the token ids, chosen and rejected in turn.

    What is longer than a row is left out. Response ids are those stored when the rollouts were measured: only the
    question is tokenised here. A response that was cut off has no end of turn to prefer or to avoid.
    """
    preferences = store.read_shard(shard, Preference)
    wanted = {one for pair in preferences for one in (pair.chosen_id, pair.rejected_id)}
    responses = response_ids(shards.measures, wanted)
    ended = {one for one, finish in frame(shards.rollouts, ("id", "finish")).rows() if finish == "stop"}
    prompt_ids = asked(chat)
    kept: list[Pair] = []
    sequences: list[Ids] = []
    for one in preferences:
        prompt = prompt_ids(one.prompt[0].content)
        chosen, rejected = (
            joined(prompt, responses[side], (chat.end,) if side in ended else ())
            for side in (one.chosen_id, one.rejected_id)
        )
        if max(len(chosen), len(rejected)) <= sequence_length:
            identity = content_id("pair", one.chosen_id, one.rejected_id, digest([chosen]), digest([rejected]))
            sides = (one.chosen_id, one.rejected_id, len(chosen), len(rejected))
            kept.append(Pair(identity, one.problem_id, *sides, len(prompt)))
            sequences += [chosen, rejected]
    return kept, sequences, ({TOO_LONG: len(preferences) - len(kept)} if len(kept) < len(preferences) else {})


def _unfit(rules: Dpo) -> pl.Expr:
    """Why a rollout can be no part of any pair."""
    right, wrong, reason = pl.col("right"), ~pl.col("right"), pl.col("reason")
    contested = wrong & ((reason == CONFLICT) | reason.str.starts_with(UNDECIDED))  # as verify/judge.py has it
    return (
        pl.when(easier(rules.levels, rules.max_pass_rate))
        .then(pl.lit("easier level"))
        .when(right.is_null())
        .then(pl.lit("could not be judged"))
        .when(contested)
        .then(reason)
        .when(pl.col("leak") != "")
        .then(pl.lit(LEAK))
        .when(pl.col("num_tokens") == 0)
        .then(pl.lit("empty response"))
        .when(right & (pl.col("finish") != "stop"))
        .then(pl.lit("right but cut off"))
        .when(right & (pl.col("repetition") != ""))
        .then(pl.lit("right but repetitive"))
        .when((pl.col("finish") != "stop") & pl.lit(not rules.truncated))
        .then(pl.lit("wrong and cut off"))
        .when((pl.col("repetition") != "") & pl.lit(not rules.repetitive))
        .then(pl.lit("wrong and repetitive"))
        .when(wrong & (pl.col("extracted").str.strip_chars() == "") & pl.lit(rules.answered))
        .then(pl.lit("wrong without an answer"))
    )


def _similar(table: pl.DataFrame, group: list[str], max_length_ratio: float) -> pl.DataFrame:
    """Every right and wrong rollout of a problem that could be a pair, most similar length first; ids break ties."""
    sides = table.select("row", "id", "num_tokens", *group, "right")
    right, wrong = sides.filter("right"), sides.filter(~pl.col("right"))
    both = right.join(wrong, on=group, suffix="_wrong")
    one, other = pl.col("num_tokens"), pl.col("num_tokens_wrong")
    ratio = pl.max_horizontal(one, other) / pl.min_horizontal(one, other)
    return both.filter(ratio <= max_length_ratio).sort((one - other).abs(), "id", "id_wrong")


def _matched(similar: pl.DataFrame, per_problem: int) -> pl.DataFrame:
    """The first pairs of each problem of which no rollout is in an earlier one, with their place in the problem."""
    used: set[int] = set()
    count: dict[str, int] = {}
    lines, places = [], []
    for line, (problem, one, other) in enumerate(similar.select("problem_id", "row", "row_wrong").iter_rows()):
        place = count.get(problem, 0)
        if place < per_problem and one not in used and other not in used:
            used |= {one, other}
            count[problem] = place + 1
            lines.append(line)
            places.append(place)
    found = similar.select(pl.all().gather(pl.Series(lines, dtype=pl.UInt32)))
    return found.with_columns(pl.Series("place", places, pl.Int32)).sort("row")
