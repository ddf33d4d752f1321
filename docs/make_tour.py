"""Write docs/tour.md: one problem followed through every stage of a finished run of the made-up world.

    python docs/make_tour.py runs/tiny [PAGE]

Everything on the page that is a record, a count or a score is read from the run. The problem is chosen by rule
(`choose` in tour_run.py), so that the same run gives the same page. PAGE is where to write; docs/tour.md unless given.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from tour_run import STAGES, WIDTH, Group, Tour, batch, choose, first_step, moved, place, story

from algorist import store, trace
from algorist.data import curate, leakage, sets, teacher
from algorist.data.decontaminate import read_report
from algorist.errors import AlgoristError
from algorist.generate import answers
from algorist.numerics.advantages import group_relative
from algorist.records import CARD, Example, Measure, Preference, Profile, Rollout, Verdict
from algorist.stages import rlvr

PAGE = Path(__file__).resolve().parent / "tour.md"
IDS, TEXT = 6, 60  # token ids and characters that are shown of what is cut


def head(tour: Tour) -> Iterator[str]:
    """What this page is, and the problem."""
    made, given = tour.made("problems"), tour.made("sources/problems")
    about, quoted = read_report(tour.root / "problems"), read_report(tour.root / "measures")
    dirty = len({hit.problem_id for hit in about.hits})
    yield "# A tour along one problem"
    yield prose(f"""Everything below is printed from one finished run of `recipes/{tour.recipe.name}.toml` by
        `python docs/make_tour.py {tour.name}`: no record is made up, none is mended. Edit that script, not this
        page. The problem was chosen because it goes through every stage; of {made.rows:,} problems
        {tour.candidates:,} do so within the first generation of stage 4, and the script says by which rule it is
        this one. Ids are hashes of content, so the same code and the same recipe give the same ids to problems and
        rollouts of the teacher on any machine. Long lists and texts that were shown before are cut with "…".""")
    yield fenced(f"algorist run recipes/{tour.recipe.name}.toml --out {tour.name}")
    yield "## 1. A problem"
    yield prose(f"""The world of the {tour.recipe.name} recipe is a year of a game: each month one player's points
        change, other players distract. The level follows from the number of steps.""")
    yield shown(tour.problem)
    yield prose("""`source` and `row` name the file that a problem was read from, and its row there. A problem of
        this world was made, not read: its source is the world, with the number of steps, and its row is -1.""")
    yield prose(f"""Before anything is learned from it, the problem is compared with all others and with the
        benchmarks. Of {given.rows:,} problems {given.rows - about.problems or "none"} repeated another; {dirty:,}
        shared {about.ngram} words in a row with a held-out one or, too short for that, were the same, and were left
        out. The file `decontamination.json` in the folder of the problems holds the report; without it no stage
        starts. The one in the folder of the measures is about what rollouts say: of {quoted.rollouts:,}
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
    yield prose(f"""The rollouts of a teacher have no token ids: a server sends text. Those of stage 4 have them;
        `source`, `row` and `label` are of traces, which come with a data set instead. What a server sends is in the
        log of answers, `answers.sqlite`, before it counts: {answered:,} answers in this run. Killed at any moment,
        the same command goes on without asking for one of them again.""")
    yield "## 3. Verdicts"
    yield prose("""The answer is taken out of the text and compared with the gold one. `right` may also be null,
        when it could not be judged; the reason says why.""")
    yield from (shown(verdicts[one.id]) for one in two)
    yield "## 4. What can be counted"
    yield prose("""Of every rollout, right or wrong: its length in the tokens of the model to be trained, whether it
        goes round in circles (`repetition`), which benchmark it quotes (`leak`), and its token ids. The text of a
        rollout is tokenised here and nowhere else.""")
    yield shown(next(one for one in tour.own("measures", Measure) if one.rollout_id == two[0].id))
    yield prose(f"""Of the problem, once its rollouts are judged: domain, level, and the pass rate, here
        {profile.right} of {profile.right + profile.wrong}, which says how hard it is.""")
    yield shown(profile)


def imitation(tour: Tour) -> Iterator[str]:
    """Stages 1 and 2."""
    first, second = tour.made("sets/midtrain"), tour.made("sets/sft")
    examples, chosen = tour.own("sets/midtrain", Example), tour.own("sets/sft", Example)
    right, step = tour.own("profiles", Profile)[0].right, place(tour)
    of = f"All {right}" if right == len(examples) else f"{len(examples)} of {right}"
    view = ["batch", "--stage", "midtrain", "--step", str(step[0]), "--count", str(step[1])]
    yield "## 5. Stage 1: an example and its sample"
    yield prose(f"""Every right rollout that ended by itself and quotes no benchmark becomes an example: a
        conversation, as other trainers read it. {of} right ones of this problem are among the {first.rows:,} of
        `sets/midtrain`. Left out of all rollouts: {reasons(first.dropped)}.""")
    yield shown(next(one for one in examples if one.rollout_id == tour.pair.chosen_id))
    yield prose(f"""The stage makes a sample of it: {tour.sample.prompt_len} token ids of the prompt, the
        {tour.sample.num_tokens - tour.sample.prompt_len - 1} of the response as they were stored with its measure,
        and the end of turn. They stand one behind the other in a flat file beside the shard, from which a step reads
        those of its own samples.""")
    yield shown(tour.sample)
    yield prose(f"""The same sample as the loss sees it in step {step[0]:,}, trained tokens in brackets. The last
        one is the end of turn: it is trained like any other.""")
    yield fenced("\n".join([f"$ algorist show {tour.name} {' '.join(view)}", batch(tour, *step)]))
    yield "## 6. Stage 2: the hard and clean part"
    yield prose(f"""{second.rows:,} examples stay in `sets/sft` (left out: {reasons(second.dropped)}). Of this
        problem {len(chosen)} {"stays" if len(chosen) == 1 else "stay"}: the one above is among them, and its sample
        is the same, since its id is made from rollout and tokens, and these are the same as in stage 1.""")


def preference(tour: Tour) -> Iterator[str]:
    """Stage 3."""
    made, pair = tour.made("sets/dpo"), tour.pair
    row = next(one for one in tour.own("sets/dpo", Preference) if one.chosen_id == pair.chosen_id)
    told = store.read_json(tour.root / "sets" / "dpo" / sets.LEAKAGE)["readings"]
    gap = cast(float, pair.chosen_ref_logprob) - cast(float, pair.rejected_ref_logprob)
    rows = [
        f"| {one['group']} | {one['auc']:.2f} | {one['low']:.2f} to {one['high']:.2f} |"
        for one in told
        if one["name"] == leakage.TOGETHER and one["group"] in leakage.KNOBS
    ]
    yield "## 7. Stage 3: a pair"
    yield prose(f"""A wrong rollout, which the stages before threw away, finds a right one of similar length. There
        are {made.rows:,} such preferences in `sets/dpo`. What is left out is counted in rollouts:
        {reasons(made.dropped)}.""")
    yield shown(row, brief=True)
    yield prose("""Before anything is learned from the pairs, it is asked whether the form of a response alone tells
        the right one from the wrong one: by length, by format, by style, each with the best score that can be made
        of it. An AUC of 0.5 says nothing, 1 tells all.""")
    yield "\n".join(["| form | AUC | 95 % interval |", "|---|---|---|", *rows])
    yield prose(f"""Where a whole interval lies above {tour.of("curate", curate.Settings).dpo.max_auc} the set is
        refused. The table is from `sets/dpo/leakage.json`, which has each property too. The stage then makes token
        ids of the preference, and the reference, which is the checkpoint of stage 2, gives both a log-probability
        before the first step.""")
    yield shown(pair)
    yield prose(f"""The reference prefers the {"right" if gap > 0 else "wrong"} one by {abs(gap):.2f} nats before
        the stage begins; DPO learns from how that changes.""")


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
        {candidates:,} of them {rounds} times each, and {kept.rows:,} were kept, this one among
        them{left_out(kept)}. In generation 0 (the first is 0), at temperature {entry["temperature"]:.2f}, the
        policy answered it {len(group.said)} times{again}. {len(right)} {"was" if len(right) == 1 else "were"}
        right:""")
    yield fenced("\n".join(" ".join(line) for line in sorted(lines, key=lambda line: "+-.".index(line[0]))))
    yield prose(f"""All {len(right)} right ones (+) and {drawn} wrong ones drawn at random (-) are learned from, the
        others (.) are not. Rewards of +1 and −1, half and half, give advantages of exactly +1 and −1. Unbalanced
        they would have been {signed(plain.max())} and {signed(plain.min())}. `{whole}` shows all {entry["groups"]}
        prompts that this step learned from. The journal of this step:""")
    yield fenced(json.dumps(entry, indent=2), "json")


def outcome(tour: Tour) -> Iterator[str]:
    """Checkpoints and scores."""
    cards = [store.read_json(tour.root / stage / "checkpoint" / CARD) for stage in STAGES]
    names = ("stage", "id", "step", "parents", "tokens")
    scores = store.read_json(tour.root / "scores.json")
    last, first = scores[-1], scores[0]
    problem, shares, samples, why = moved(tour, last["benchmark"])
    lines, asked = story(tour)
    generations = " and ".join(filter(None, [", ".join(map(str, asked[:-1])), str(asked[-1])]))
    yield "## 9. Checkpoints"
    yield "Each names its parents, checkpoint first, then data set:"
    yield fenced("\n".join(json.dumps({name: card[name] for name in names}) for card in cards), "json")
    yield "## 10. A score"
    yield prose(f"""The problem itself is trained on and never scored. {last["problems"]:,} others are,
        {last["samples"]} times each, by every checkpoint and with the same addresses of chance. One of them, {why}:""")
    yield dumped({name: getattr(problem, name) for name in ("id", "statement", "answer", "source")})
    rows = [f"| {stage} | {shares[stage]:.2f} | `{cell(samples[stage])}` |" for stage in STAGES]
    yield "\n".join(["| checkpoint | share of right samples | its first sample |", "|---|---|---|", *rows])
    yield "The mean of such shares over all problems is the score, here of the last stage:"
    yield fenced(json.dumps(last, indent=2), "json")
    yield "## The whole story in one command"
    yield fenced("\n".join([f"$ algorist why {tour.problem.id} --run {tour.name}", *lines]))
    yield prose(f"""The arrow marks the record that was asked for; its rollouts in rlvr/rollouts are of generations
        {generations}. From the base model to the last stage: {percent(first)} to {percent(last)}. The README has
        the whole table.""")


def prose(text: str) -> str:
    """A paragraph in lines of at most WIDTH characters."""
    return textwrap.fill(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False)


def fenced(text: str, language: str = "") -> str:
    """A block of code."""
    return f"```{language}\n{text}\n```"


def shown(record: Any, *, brief: bool = False) -> str:
    """A record as JSON, a line for each field; lists of numbers are cut, and where it is brief, texts too."""
    return dumped({name: cut(value, brief) for name, value in asdict(record).items()})


def dumped(fields: Mapping[str, Any]) -> str:
    """JSON with a line for each field, and one for each table inside of it."""
    lines = []
    for name, value in fields.items():
        rows = [json.dumps(one, ensure_ascii=False) for one in value] if isinstance(value, list) else []
        inner = ",\n".join(f"    {row}" for row in rows)
        tables = bool(value) and isinstance(value, list) and isinstance(value[0], dict)
        text = f"[\n{inner}\n  ]" if tables else json.dumps(value, ensure_ascii=False)
        lines.append(f"  {json.dumps(name)}: {text}")
    return fenced("{\n" + ",\n".join(lines) + "\n}", "json")


def cut(value: Any, brief: bool) -> Any:
    """A value with long lists of numbers, and long texts where it is brief, cut."""
    if isinstance(value, dict):
        return {name: cut(inner, brief) for name, inner in value.items()}
    if isinstance(value, list | tuple) and value and isinstance(value[0], int | float):
        return list(value) if len(value) <= IDS else [*value[:IDS], f"… {len(value)} in all"]
    if isinstance(value, list | tuple):
        return [cut(inner, brief) for inner in value]
    return f"{value[:TEXT]}…" if brief and isinstance(value, str) and len(value) > TEXT else value


def reasons(dropped: Mapping[str, int]) -> str:
    """`5,130 different, 536 cut off`, the most frequent first."""
    return ", ".join(f"{n:,} {why}" for why, n in sorted(dropped.items(), key=lambda item: (-item[1], item[0])))


def left_out(made: store.Manifest) -> str:
    """` (left out: 1 too hard)`, or nothing where nothing was."""
    return f" (left out: {reasons(made.dropped)})" if made.dropped else ""


def sign(rollout: Rollout, verdict: Verdict, group: Group) -> str:
    """+ and - of what was learned from, . of what was not."""
    return "." if rollout.id not in group.learned else "+" if verdict.right else "-"


def ends(text: str) -> str:
    """How a response begins and ends."""
    folded = " ".join(text.split())
    return folded if len(folded) <= WIDTH - 20 else f"{folded[:38]} … {folded[-60:]}"


def cell(text: str) -> str:
    """A response as code inside of a table."""
    return trace.harmless(" ".join(text.split())).replace("|", "\\|").replace("`", "'")


def signed(value: Any) -> str:
    """`+1.48`, `−0.67`."""
    return f"{float(value):+.2f}".replace("-", "−")


def percent(score: Mapping[str, Any]) -> str:
    """`42.0 % (38.4 to 45.7)`."""
    return f"{100 * score['value']:.1f} % ({100 * score['low']:.1f} to {100 * score['high']:.1f})"


PARTS: Sequence[Callable[[Tour], Iterator[str]]] = (head, said, imitation, preference, own_rollouts, outcome)


def page(root: Path) -> str:
    """The whole of docs/tour.md."""
    tour = choose(root)
    return "\n\n".join(block for part in PARTS for block in part(tour)) + "\n"


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python docs/make_tour.py RUN [PAGE]")
    try:
        (Path(sys.argv[2]) if len(sys.argv) == 3 else PAGE).write_text(page(Path(sys.argv[1])), encoding="utf-8")
    except AlgoristError as error:
        sys.exit(str(error))
