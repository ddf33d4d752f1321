"""Write docs/tour.md: one problem followed through every stage of a finished run of the made-up world.

    python docs/make_tour.py runs/tiny [PAGE]

Everything on the page that is a record, a count or a score is read from the run. The problem is chosen by rule (`choose`),
so that the same run gives the same page. PAGE is where to write; docs/tour.md unless given.
"""

from __future__ import annotations

import io
import itertools
import json
import sys
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from rich.console import Console

from algorist import journal, recipe, show, store, tasks, trace
from algorist.data import curate, leakage, teacher
from algorist.data.decontaminate import read_report
from algorist.errors import AlgoristError, RunError
from algorist.generate import answers
from algorist.model import chat
from algorist.numerics.address import rng
from algorist.numerics.advantages import group_relative
from algorist.numerics.groups import select
from algorist.records import CARD, Example, Measure, Pair, Preference, Problem, Profile, Rollout, Sample, Verdict
from algorist.stage import Run
from algorist.stages import midtrain, rlvr

HERE = Path(__file__).resolve().parent
PAGE = HERE / "tour.md"
STAGES = ("base", "midtrain", "sft", "dpo", "rlvr")
WIDTH = 120  # characters of a line of prose
IDS, TEXT = 6, 60  # token ids and characters that are shown of what is cut
ALIKE, SHOWN = 4, 3  # more lines than ALIKE of one kind and place are cut to SHOWN
Item = TypeVar("Item")


@dataclass(frozen=True)
class Group:
    """What the policy said to the problem in generation 0, in the order in which it said it."""

    said: tuple[tuple[Rollout, Verdict], ...]
    learned: frozenset[str]  # ids of the rollouts that were learned from


@dataclass(frozen=True)
class Tour:
    """A run, and the problem that is followed through it."""

    root: Path
    name: str  # of the run's folder, as the page writes it
    recipe: recipe.Recipe
    problem: Problem
    pair: Pair
    sample: Sample  # of the pair's chosen rollout
    group: Group
    candidates: int  # problems that the rule left

    def read(self, place: str, kind: type[Item]) -> list[Item]:
        """All records of a data set of the run."""
        return store.read(self.root / place, kind)

    def own(self, place: str, kind: type[Item]) -> list[Item]:
        """Those of the problem."""
        return [one for one in self.read(place, kind) if cast(Any, one).problem_id == self.problem.id]

    def of(self, section: str, kind: type[Item]) -> Item:
        """A section of the recipe."""
        return self.recipe.of(section, kind)

    def made(self, place: str) -> store.Manifest:
        """The manifest of a data set of the run."""
        return store.manifest(self.root / place)


def choose(root: Path) -> Tour:
    """The problem to follow. One with these properties:

    - generation 0 of stage 4 learned from right and wrong responses to it;
    - it has a pair in stage 3;
    - the right rollout of that pair is a sample of stages 1 and 2, and the only one of stage 1 with these tokens.

    Of several, one that stage 4 asked again comes first, then the one that it asked least often, then the pair with the
    smallest id. Raises RunError where the run is not finished or no problem is left.
    """
    if not (root / "report.md").exists():
        raise RunError(f"{root}: is no finished run (there is no report.md). Run the recipe to its end first.")
    said = recipe.read(root / "recipe.toml", tasks.sections())
    groups = generation(root, said)
    learned = [sample.rollout_id for sample in store.read(root / "sft" / "data", Sample)]
    samples = store.read(root / "midtrain" / "data", Sample)
    times = defaultdict(int)
    for sample in samples:
        times[sample.tokens] += 1
    usable = {one.rollout_id: one for one in samples if times[one.tokens] == 1 and one.rollout_id in set(learned)}
    pairs = store.read(root / "dpo" / "data", Pair)
    in_both = [pair for pair in pairs if pair.chosen_id in usable]
    left = [pair for pair in in_both if pair.problem_id in groups and groups[pair.problem_id].learned]
    if not left:
        raise RunError(
            f"{root}: no problem goes through every stage. Of {len(pairs):,} pairs {len(in_both):,} prefer a rollout that "
            f"stages 1 and 2 learned from, and generation 0 of stage 4 learned from none of these. Take a larger recipe."
        )
    size = said.of("rlvr", rlvr.Settings).group_size
    sampled = {problem: len(group.said) for problem, group in groups.items()}
    order = sorted(left, key=lambda pair: (sampled[pair.problem_id] == size, sampled[pair.problem_id], pair.id))
    pair, problems = order[0], {problem.id: problem for problem in store.read(root / "problems", Problem)}
    own, group = usable[pair.chosen_id], groups[pair.problem_id]
    count = len({pair.problem_id for pair in left})
    return Tour(root, f"runs/{said.name}", said, problems[pair.problem_id], pair, own, group, count)


def generation(root: Path, said: recipe.Recipe) -> dict[str, Group]:
    """The groups of generation 0 by problem; which responses were learned from is drawn again, as the stage drew it."""
    settings = said.of("rlvr", rlvr.Settings)
    rollouts = store.read_shard(root / "rlvr" / "rollouts" / "00000.parquet", Rollout)
    verdicts = store.read_shard(root / "rlvr" / "verdicts" / "00000.parquet", Verdict)
    found: dict[str, list[tuple[Rollout, Verdict]]] = defaultdict(list)
    for rollout, verdict in zip(rollouts, verdicts, strict=True):
        found[rollout.problem_id].append((rollout, verdict))
    groups = {}
    for problem, group in found.items():
        judged = [(rollout, verdict.right) for rollout, verdict in group if verdict.right is not None]
        generator = rng(said.seed, "rlvr", "balance", 0, problem)
        limits = {"balance": settings.balance, "max_accuracy": settings.max_prompt_accuracy}
        kept = select([right for _, right in judged], generator, **cast(Any, limits)).kept
        groups[problem] = Group(tuple(group), frozenset(judged[place][0].id for place in kept))
    count, told = sum(len(group.learned) for group in groups.values()), first_step(root)["learned_from"]
    if count != told:
        raise RunError(f"{root}: generation 0 learned from {told} responses, {count} are found. Use the code of the run.")
    return groups


def first_step(root: Path) -> dict[str, Any]:
    """The journal's line of the first generation."""
    return next(entry for entry in journal.read(root / "rlvr") if "learned_from" in entry)


def head(tour: Tour) -> Iterator[str]:
    """What this page is, and the problem."""
    made, given = tour.made("problems"), tour.made("sources/problems")
    about, quoted = read_report(tour.root / "problems"), read_report(tour.root / "measures")
    dirty = len({hit.problem_id for hit in about.hits})
    yield "# A tour along one problem"
    yield prose(f"""Everything below is printed from one finished run of `recipes/{tour.recipe.name}.toml` by
        `python docs/make_tour.py {tour.name}`: no record is made up, none is mended. Edit that script, not this page. The
        problem was chosen because it goes through every stage; of {made.rows:,} problems {tour.candidates:,} do so within
        the first generation of stage 4, and the script says by which rule it is this one. Ids are hashes of content, so
        the same code and the same recipe give the same ids to problems and rollouts of the teacher on any machine. Long
        lists and texts that were shown before are cut with "…".""")
    yield fenced(f"algorist run recipes/{tour.recipe.name}.toml --out {tour.name}")
    yield "## 1. A problem"
    yield prose(f"""The world of the {tour.recipe.name} recipe is a year of a game: each month one player's points change,
        other players distract. The level follows from the number of steps.""")
    yield shown(tour.problem)
    yield prose("""`source` and `row` name the file that a problem was read from, and its row there. A problem of this world
        was made, not read: its source is the world, with the number of steps, and its row is -1.""")
    yield prose(f"""Before anything is learned from it, the problem is compared with all others and with the benchmarks. Of
        {given.rows:,} problems {given.rows - about.problems or "none"} repeated another; {dirty:,} shared {about.ngram}
        words in a row with a held-out one or, too short for that, were the same, and were left out. The file
        `decontamination.json` in the folder of the problems holds the report; without it no stage starts. The one in the
        folder of the measures is about what rollouts say: of {quoted.rollouts:,}
        {len(quoted.hits) or "none"} quoted a benchmark.""")


def said(tour: Tour) -> Iterator[str]:
    """Two rollouts of the teacher, the verdicts on them, what is counted on one, and the profile of the problem."""
    settings, rollouts = tour.of("teacher", teacher.Settings), tour.own("rollouts", Rollout)
    profile = tour.own("profiles", Profile)[0]
    two = [next(one for one in rollouts if one.id == own) for own in (tour.pair.chosen_id, tour.pair.rejected_id)]
    verdicts = {one.rollout_id: one for one in tour.read("verdicts", Verdict)}
    with answers.reading(tour.root / answers.FILE) as log:
        answered = len(log)
    unjudged = f", {profile.unjudged} could not be judged" if profile.unjudged else ""
    yield "## 2. What the teacher says"
    yield prose(f"""The teacher is asked {settings.samples} times at temperature {settings.temperature}.
        {len(rollouts)} rollouts came back, {profile.right} right and {profile.wrong} wrong{unjudged}. One of each:""")
    yield from (shown(one) for one in two)
    yield prose(f"""The rollouts of a teacher have no token ids: a server sends text. Those of stage 4 have them. What a
        server sends is in the log of answers, `answers.sqlite`, before it counts: {answered:,} answers in this run. Killed
        at any moment, the same command goes on without asking for one of them again.""")
    yield "## 3. Verdicts"
    yield prose("""The answer is taken out of the text and compared with the gold one. `right` may also be null, when it
        could not be judged; the reason says why.""")
    yield from (shown(verdicts[one.id]) for one in two)
    yield "## 4. What can be counted"
    yield prose("""Of every rollout, right or wrong: its length in the tokens of the model to be trained, whether it goes
        round in circles (`repetition`), which benchmark it quotes (`leak`), and its token ids. A response is tokenised
        here and nowhere else.""")
    yield shown(next(one for one in tour.own("measures", Measure) if one.rollout_id == two[0].id))
    yield prose(f"""Of the problem, once its rollouts are judged: {profile.right} right ones of
        {profile.right + profile.wrong} are its pass rate, the measure of how hard it is.""")
    yield shown(profile)


def imitation(tour: Tour) -> Iterator[str]:
    """Stages 1 and 2."""
    first, second = tour.made("sets/midtrain"), tour.made("sets/sft")
    examples, chosen = tour.own("sets/midtrain", Example), tour.own("sets/sft", Example)
    right, step = tour.own("profiles", Profile)[0].right, place(tour)
    of = f"All {right}" if right == len(examples) else f"{len(examples)} of {right}"
    view = ["batch", "--stage", "midtrain", "--step", str(step[0]), "--count", str(step[1])]
    yield "## 5. Stage 1: an example and its sample"
    yield prose(f"""Every right rollout that ended by itself and quotes no benchmark becomes an example: a conversation, as
        other trainers read it. {of} right ones of this problem are among the {first.rows:,} of `sets/midtrain`. Left out
        of all rollouts: {reasons(first.dropped)}.""")
    yield shown(next(one for one in examples if one.rollout_id == tour.pair.chosen_id))
    yield prose("""The stage makes a sample of it: the token ids of the prompt, of the response as they were stored with its
        measure, and the end of turn.""")
    yield shown(tour.sample)
    yield prose(f"""The same sample as the loss sees it in step {step[0]:,}, trained tokens in brackets. The last one is the
        end of turn: it is trained like any other.""")
    yield fenced("\n".join([f"$ algorist show {tour.name} {' '.join(view)}", *batch(tour, *step)]))
    yield "## 6. Stage 2: the hard and clean part"
    yield prose(f"""{second.rows:,} examples stay in `sets/sft` (left out: {reasons(second.dropped)}). Of this problem
        {len(chosen)} {"stays" if len(chosen) == 1 else "stay"}: the one above is among them, and its sample is the same,
        since its id is made from rollout and tokens, and these are the same as in stage 1.""")


def preference(tour: Tour) -> Iterator[str]:
    """Stage 3."""
    made, pair = tour.made("sets/dpo"), tour.pair
    row = next(one for one in tour.own("sets/dpo", Preference) if one.chosen_id == pair.chosen_id)
    told = store.read_json(tour.root / "sets" / "dpo" / leakage.LEAKAGE)["readings"]
    gap = cast(float, pair.chosen_ref_logprob) - cast(float, pair.rejected_ref_logprob)
    rows = [
        f"| {one['group']} | {one['auc']:.2f} | {one['low']:.2f} to {one['high']:.2f} |"
        for one in told
        if one["name"] == leakage.TOGETHER and one["group"] in leakage.KNOBS
    ]
    yield "## 7. Stage 3: a pair"
    yield prose(f"""A wrong rollout, which the stages before threw away, finds a right one of similar length. There are
        {made.rows:,} such preferences in `sets/dpo`. What is left out is counted in rollouts: {reasons(made.dropped)}.""")
    yield shown(row, brief=True)
    yield prose("""Before anything is learned from the pairs, it is asked whether the form of a response alone tells the right
        one from the wrong one: by length, by format, by style, each with the best score that can be made of it. An AUC of
        0.5 says nothing, 1 tells all.""")
    yield "\n".join(["| form | AUC | 95 % interval |", "|---|---|---|", *rows])
    yield prose(f"""Where an interval lies above {tour.of("curate", curate.Settings).dpo.max_auc} the set is refused. The
        table is from `sets/dpo/leakage.json`, which has each property too. The stage then makes token ids of the
        preference, and the reference, which is the checkpoint of stage 2, gives both a log-probability before the first
        step.""")
    yield shown(pair)
    yield prose(f"""The reference prefers the {"right" if gap > 0 else "wrong"} one by {abs(gap):.2f} nats before the stage
        begins; DPO learns from how that changes.""")


def own_rollouts(tour: Tour) -> Iterator[str]:
    """Stage 4."""
    settings, entry, group = tour.of("rlvr", rlvr.Settings), first_step(tour.root), tour.group
    asked, kept = tour.made("sets/rlvr"), tour.made("rlvr/data")
    candidates, rounds = kept.rows + sum(kept.dropped.values()), settings.prompts.rounds * settings.prompts.samples
    right = [one.id for one, verdict in group.said if verdict.right]
    drawn = len(group.learned) - len([own for own in right if own in group.learned])
    again = f""": the first {len(group.said) - settings.group_size} brought fewer than {settings.enough_right} right
        responses, so it was asked again""" * (len(group.said) > settings.group_size)
    worth = [settings.reward.right if verdict.right else settings.reward.wrong for _, verdict in group.said]
    plain = group_relative(torch.tensor(worth))
    lines = [(sign(one, verdict, group), f"{one.id}  {ends(one.text)}") for one, verdict in group.said]
    whole = f"algorist show {tour.name} batch --stage rlvr --step 0 --count {entry['groups']}"
    yield "## 8. Stage 4: a group"
    yield prose(f"""`sets/rlvr` holds {asked.rows:,} questions{left_out(asked)}. The checkpoint of stage 3 answered
        {candidates:,} of them {rounds} times each, and {kept.rows:,} were kept, this one among them{left_out(kept)}. In
        generation 0 (the first is 0), at temperature {entry["temperature"]:.2f}, the policy answered it
        {len(group.said)} times{again}. {len(right)} {"was" if len(right) == 1 else "were"} right:""")
    yield fenced("\n".join(" ".join(line) for line in sorted(lines, key=lambda line: "+-.".index(line[0]))))
    yield prose(f"""All {len(right)} right ones (+) and {drawn} wrong ones drawn at random (-) are learned from, the others
        (.) are not. Rewards of +1 and −1, half and half, give advantages of exactly +1 and −1. Unbalanced they would have
        been {signed(plain.max())} and {signed(plain.min())}. `{whole}` prints the {entry["groups"]} groups that were learned
        from. The journal of this step:""")
    yield fenced(json.dumps(entry, indent=2), "json")


def outcome(tour: Tour) -> Iterator[str]:
    """Checkpoints and scores."""
    cards = [store.read_json(tour.root / stage / "checkpoint" / CARD) for stage in STAGES]
    names = ("stage", "id", "step", "parents", "tokens")
    scores = store.read_json(tour.root / "scores.json")
    last, first = scores[-1], scores[0]
    yield "## 9. Checkpoints"
    yield "Each names its parents, checkpoint first, then data set:"
    yield fenced("\n".join(json.dumps({name: card[name] for name in names}) for card in cards), "json")
    yield "## 10. A score"
    yield prose(f"""The problem itself is trained on and never scored. {last["problems"]:,} others are, {last["samples"]}
        times each, by every checkpoint and with the same addresses of chance. One of them, {moved_by(tour)}:""")
    problem, shares, samples = moved(tour, last["benchmark"])
    yield dumped({name: getattr(problem, name) for name in ("id", "statement", "answer", "source")})
    rows = [f"| {stage} | {shares[stage]:.2f} | `{cell(samples[stage])}` |" for stage in STAGES]
    yield "\n".join(["| checkpoint | share of right samples | its first sample |", "|---|---|---|", *rows])
    yield "The mean of such shares over all problems is the score, here of the last stage:"
    yield fenced(json.dumps(last, indent=2), "json")
    yield "## The whole story in one command"
    yield fenced("\n".join([f"$ algorist why {tour.problem.id} --run {tour.name}", *story(tour)]))
    yield prose(f"""The arrow marks the record that was asked for. From the base model to the last stage:
        {percent(first)} to {percent(last)}. The README has the whole table.""")
