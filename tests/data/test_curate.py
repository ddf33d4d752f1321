"""What of the rollouts and problems becomes the sets of stages 1, 2 and 4, each rule by hand; pairs have their own."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from algorist import store
from algorist.data import curate, sets
from algorist.data.curate import Dpo, LevelWeights, Midtrain, Rlvr, Settings, Sft
from algorist.data.shards import Engine
from algorist.errors import RecordError
from algorist.model.chat import Chat
from algorist.records import Example, Message, Problem, Verdict
from algorist.toy import words
from curation import HERE, PROMPT, Told, draw, dropped, problem, told, world, write_run

EASY, HARD, BARE = problem(1, "elementary"), problem(2, "college"), problem(3, "")
EVERYONE = Sft(levels=(), size=0)


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.of(words.tokenizer(), PROMPT)


def rollouts(of: Problem, *lengths: int, right: bool | None = True) -> list[Told]:
    """Rollouts of these lengths in tokens, numbered."""
    return [told(of, right, f"{length} tokens", index, tokens=length) for index, length in enumerate(lengths)]


def lengths(examples: Iterable[Example]) -> list[int]:
    return [one.num_tokens for one in examples]


def test_stage_1_learns_from_what_is_right_and_ended(tmp_path: Path) -> None:
    fates: list[tuple[bool | None, dict[str, Any]]] = [
        (True, {}),
        (False, {}),
        (None, {}),
        (True, {"finish": "length"}),
        (True, {"leak": "aime24"}),
        (True, {"tokens": 0}),
        (True, {"repetition": "loop"}),
        (False, {"reason": "no answer", "finish": "length"}),
    ]
    found = [told(HARD, right, f"text {i}", i, **more) for i, (right, more) in enumerate(fates)]
    write_run(tmp_path, [EASY, HARD], found)
    kept = draw(tmp_path, "midtrain")
    assert [one.rollout_id for one in kept] == [found[0].rollout.id, found[6].rollout.id]
    reasons = {"different": 1, "timed out": 1, "right but cut off": 1, "quotes a benchmark": 1, "empty response": 1}
    assert dropped(tmp_path, "midtrain") == {**reasons, "no answer": 1}
    strict = draw(tmp_path, "midtrain", Midtrain(repetitive=False))
    assert [one.rollout_id for one in strict] == [found[0].rollout.id]
    assert dropped(tmp_path, "midtrain") == {**reasons, "no answer": 1, "repetitive": 1}


def test_an_example_says_everything_of_its_rollout(tmp_path: Path) -> None:
    one = told(HARD, True, "Four.", tokens=3)
    write_run(tmp_path, [EASY, HARD], [one, told(HARD, False, "Five.", 1)])
    (example,) = draw(tmp_path, "midtrain")
    asked = "Please solve this.\nWhat is 2 plus 2?"
    assert example.messages == (Message("user", asked), Message("assistant", "Four."))
    assert (example.problem_id, example.rollout_id, example.num_tokens) == (HARD.id, one.rollout.id, 3)
    assert (example.pass_rate, example.domain, example.level) == (0.5, "algebra", "college")
    assert (example.source, example.licence) == ("made/up", "MIT") and len(example.id) == 16


def test_rollouts_of_one_problem_can_be_limited(tmp_path: Path) -> None:
    write_run(tmp_path, [EASY, HARD], rollouts(EASY, 1, 2, 3, 4, 5) + rollouts(HARD, 1))
    kept = draw(tmp_path, "midtrain", Midtrain(per_problem=2))
    assert len(kept) == 3 and dropped(tmp_path, "midtrain") == {"its problem has enough rollouts": 3}
    chosen = [lengths(draw(tmp_path, "midtrain", Midtrain(per_problem=2), seed=seed))[:2] for seed in range(8)]
    assert len({tuple(one) for one in chosen}) > 2, "drawn at random"


def write_copies(folder: Path) -> None:
    """A hard problem with a wrong rollout, the same text right three times, nearly so, and two loops; an easy one."""
    ids = [(i * 7919) % 1000 for i in range(400)]
    texts = {"wrong": ids, "first": ids, "near": [*ids[:-1], 3], "other": [(i * 104729) % 997 for i in range(400)]}
    texts |= {"second": ids, "third": ids, "short": ids[:-1], "loop": [3, 4] * 50, "longer": [3, 4] * 60}
    found = [told(HARD, text != "wrong", text, at, tokens=tokens) for at, (text, tokens) in enumerate(texts.items())]
    write_run(folder, [HARD, EASY], [*found, told(EASY, True, "elsewhere", tokens=ids)])


def texts_of(examples: Iterable[Example]) -> list[str]:
    return [one.messages[1].content for one in examples]


COPY, NEAR = "copy of another rollout of its problem", "near-copy of another rollout of its problem"


def test_the_same_text_is_learned_from_once(tmp_path: Path) -> None:
    write_copies(tmp_path)
    for name, rules in (("midtrain", Midtrain()), ("sft", replace(EVERYONE, per_problem=8))):
        kept = draw(tmp_path, name, rules)  # type: ignore[arg-type]
        assert texts_of(kept) == ["first", "near", "other", "short", "loop", "longer", "elsewhere"]
        assert dropped(tmp_path, name) == {"different": 1, COPY: 2}


def test_near_copies_go_and_copies_stay_where_the_recipe_says_so(tmp_path: Path) -> None:
    write_copies(tmp_path)
    kept = draw(tmp_path, "midtrain", Midtrain(near=0.8))
    assert texts_of(kept) == ["first", "other", "loop", "elsewhere"]
    assert dropped(tmp_path, "midtrain") == {"different": 1, COPY: 2, NEAR: 3}
    assert len(draw(tmp_path, "midtrain", Midtrain(near=2.0))) == 9
    assert dropped(tmp_path, "midtrain") == {"different": 1}


def test_stage_2_may_be_stricter_than_stage_1_and_never_laxer(tmp_path: Path) -> None:
    write_copies(tmp_path)
    every = replace(EVERYONE, per_problem=8)

    def kept(midtrain: float, sft: float) -> list[str]:
        return texts_of(draw(tmp_path, "sft", settings=Settings(Midtrain(near=midtrain), replace(every, near=sft))))

    assert len(kept(2.0, 2.0)) == 9
    assert kept(2.0, 1.0) == kept(1.0, 2.0) == kept(1.0, 1.0) and len(kept(1.0, 1.0)) == 7
    assert kept(2.0, 0.8) == kept(1.0, 0.8) == kept(0.8, 2.0) == ["first", "other", "loop", "elsewhere"]
    assert dropped(tmp_path, "sft") == {"different": 1, COPY: 2, NEAR: 3}


def test_of_copies_as_typical_as_each_other_one_fills_its_problems_room(tmp_path: Path) -> None:
    """Copies are gone before the median is looked at, so that two of them cannot take both places."""
    same = list(range(2, 52))
    found = [told(HARD, True, f"same {i}", i, tokens=same) for i in range(4)] + rollouts(HARD, 10, 60, 90)
    write_run(tmp_path, [HARD], found)
    settings = Settings(Midtrain(near=2.0), replace(EVERYONE, per_problem=2))
    assert sorted(lengths(draw(tmp_path, "sft", settings=settings))) == [50, 60]


def test_stage_2_keeps_the_most_typical_of_hard_problems(tmp_path: Path) -> None:
    # Neither the rambling one nor the curt one; the median is over right rollouts only.
    found = rollouts(HARD, 90, 10, 24, 60, 20) + rollouts(EASY, 5) + [told(HARD, False, "wrong", 9, tokens=1000)]
    write_run(tmp_path, [HARD, EASY], found)
    kept = draw(tmp_path, "sft", Sft(levels=("college",), keep_easier=0.0, per_problem=2))
    assert sorted(lengths(kept)) == [20, 24] and {one.problem_id for one in kept} == {HARD.id}
    reasons = {"different": 1, "easier level": 1, "further from its problem's median length": 3}
    assert dropped(tmp_path, "sft") == reasons


def test_without_levels_all_problems_are_hard(tmp_path: Path) -> None:
    write_run(tmp_path, [HARD, EASY], rollouts(HARD, 3) + rollouts(EASY, 5))
    assert lengths(draw(tmp_path, "sft", EVERYONE)) == [3, 5] and dropped(tmp_path, "sft") == {}


def test_a_share_of_the_easier_problems_stays(tmp_path: Path) -> None:
    easy = [problem(number, "elementary") for number in range(500)]
    write_run(tmp_path, easy, [one for each in easy for one in rollouts(each, 3, 4)])
    kept = {}
    for share in (0.0, 0.3, 0.6, 1.0):
        rules = Sft(levels=("college",), keep_easier=share, per_problem=2)
        chosen = draw(tmp_path, "sft", rules)
        kept[share] = {one.problem_id for one in chosen}
        assert len(chosen) == 2 * len(kept[share]) == 1000 - dropped(tmp_path, "sft").get("easier level", 0)
        assert len(kept[share]) / 500 == pytest.approx(share, abs=0.07)
    assert kept[0.3] < kept[0.6]
    other = draw(tmp_path, "sft", Sft(levels=("college",), keep_easier=0.3, per_problem=2), seed=2)
    assert {one.problem_id for one in other} != kept[0.3]


def test_where_no_level_is_known_the_pass_rate_says_what_is_hard(tmp_path: Path) -> None:
    found = rollouts(BARE, 1, 2, 3) + [told(BARE, False, "no", 3), told(EASY, True), told(EASY, False, "no", 1)]
    write_run(tmp_path, [BARE, EASY], found)
    for rate, expected in ((0.75, {BARE.id}), (0.74, set())):
        rules = Sft(levels=("college",), keep_easier=0.0, max_pass_rate=rate)
        assert {one.problem_id for one in draw(tmp_path, "sft", rules)} == expected


def test_what_the_teacher_fails_is_drawn_more_often(tmp_path: Path) -> None:
    problems = [problem(number) for number in range(400)]
    found = [told(each, True) for each in problems]
    found += [told(each, False, f"{i}", i + 1) for each in problems[::2] for i in range(9)]
    write_run(tmp_path, problems, found)
    kept = draw(tmp_path, "sft", Sft(size=60, hardness=9.0))  # weights 9.1 and 1
    assert len(kept) == 60 and 0.78 < sum(one.pass_rate == 0.1 for one in kept) / 60 < 1
    even = draw(tmp_path, "sft", Sft(size=60, hardness=0.0))
    assert 0.3 < sum(one.pass_rate == 0.1 for one in even) / 60 < 0.7


def test_stage_2_is_drawn_from_what_stage_1_has_and_repeats_nothing(tmp_path: Path) -> None:
    problems, found = world(120)
    write_run(tmp_path, problems, found, shards=2)
    settings = Settings(midtrain=Midtrain(per_problem=1), sft=replace(EVERYONE, per_problem=8))
    one = {each.rollout_id for each in draw(tmp_path, "midtrain", settings=settings)}
    two = {each.rollout_id for each in draw(tmp_path, "sft", settings=settings)}
    loops = {each.rollout.id for each in found if each.measure.repetition}
    assert two == one - loops and len(two) < len(one)
    kept = draw(tmp_path, "sft", settings=replace(settings, sft=replace(settings.sft, repetitive=True)))
    assert {each.rollout_id for each in kept} == one


def test_stage_4_asks_by_band_of_pass_rate(tmp_path: Path) -> None:
    problems = [problem(number) for number in range(7)]
    problems[5] = replace(problems[5], answer=" ")
    rights = {0: 0, 1: 1, 2: 4, 3: 8, 5: 4}
    found = [told(problems[n], i < right, f"{i}", i) for n, right in rights.items() for i in range(8)]
    found += [told(problems[4], None, f"{i}", i) for i in range(2)]
    write_run(tmp_path, problems, found)

    def asked(rules: Rlvr) -> list[int]:
        ids = [one.problem_id for one in draw(tmp_path, "rlvr", rules)]
        return [number for number, each in enumerate(problems) if each.id in ids]

    assert asked(Rlvr()) == [1, 2, 3]
    reasons = {"no answer to compare with": 1, "answer could not be judged": 1, "no rollouts": 1, "too hard": 1}
    assert dropped(tmp_path, "rlvr") == reasons
    assert asked(Rlvr(max_pass_rate=0.5)) == [1, 2] and dropped(tmp_path, "rlvr")["too easy"] == 1
    assert asked(Rlvr(min_pass_rate=0.0, unmeasured=True)) == [0, 1, 2, 3, 6]
    assert len(asked(Rlvr(size=2))) == 2 and dropped(tmp_path, "rlvr")["not drawn: the set is full"] == 1


def test_a_question_says_everything_of_its_problem(tmp_path: Path) -> None:
    write_run(tmp_path, [HARD], rollouts(HARD, 3))
    (question,) = draw(tmp_path, "rlvr")
    assert question.prompt == (Message("user", "Please solve this.\nWhat is 2 plus 2?"),)
    assert (question.problem_id, question.answer, question.pass_rate) == (HARD.id, "4", 1.0)
    assert (question.level, question.domain, question.source, question.licence) == (
        "college",
        "algebra",
        "made/up",
        "MIT",
    )


def test_prompts_can_be_kept_apart_from_other_sets(tmp_path: Path) -> None:
    problems, found = world(200)
    write_run(tmp_path, problems, found, shards=3)
    sft, dpo = (draw(tmp_path, name) for name in ("sft", "dpo"))
    all_of_them = {one.problem_id for one in draw(tmp_path, "rlvr")}
    apart = draw(tmp_path, "rlvr", Rlvr(disjoint_from=("sft", "dpo")))
    taken = {one.problem_id for one in (*sft, *dpo)}
    assert {one.problem_id for one in apart} == all_of_them - taken and taken & all_of_them
    reasons = dropped(tmp_path, "rlvr")
    assert reasons["in the set of sft"] + reasons["in the set of dpo"] == len(all_of_them & taken)
    manifest = store.manifest(tmp_path / "sets" / "rlvr")
    assert store.manifest(tmp_path / "sets" / "sft").id in manifest.parents and len(manifest.parents) == 4


RULES: dict[sets.Name, Any] = {
    "midtrain": Midtrain(per_problem=3, repetitive=False),
    "sft": Sft(per_problem=2, size=40, keep_easier=0.5),
    "dpo": Dpo(levels=(), size=24, max_auc=1.0),
    "rlvr": Rlvr(size=50),
}


@pytest.mark.parametrize("name", sets.SETS)
def test_nothing_is_lost_uncounted_and_shards_change_nothing(tmp_path: Path, name: sets.Name) -> None:
    problems, found = world(200)
    entered = len(problems) if name == "rlvr" else len(found)
    weight = 2 if name == "dpo" else 1
    kept: list[set[str]] = []
    for shards, order in ((1, 1), (4, 1), (3, -1)):
        root = write_run(tmp_path / f"{shards}", problems[::order], found, shards)
        records = draw(root, name, RULES[name])
        assert entered == weight * len(records) + sum(dropped(root, name).values())
        assert len({one.id for one in records}) == len(records) > 20
        kept.append({one.id for one in records})
    assert kept[0] == kept[1] == kept[2]


@pytest.mark.parametrize("name", sets.SETS)
def test_a_source_that_goes_changes_little_of_the_rest(tmp_path: Path, name: sets.Name) -> None:
    problems, found = world(360)
    rest = [one for one in problems if one.source != "source 2"]
    before = draw(write_run(tmp_path / "all", problems, found, 3), name, RULES[name])
    after = draw(write_run(tmp_path / "rest", rest, found, 2), name, RULES[name])
    stayed = {one.id for one in before if one.source != "source 2"}
    lost = stayed - {one.id for one in after}
    # A pair may lose the pair of opposite lengths that it was balanced with; all else is drawn by keys of its own.
    share = 0.2 if name == "dpo" else 0.05
    assert len(lost) <= share * len(stayed), f"{len(lost)} of {len(stayed)} went with a source that they are not of"


def test_a_set_is_made_again_only_where_something_changed(tmp_path: Path) -> None:
    problems, found = world(90)
    write_run(tmp_path, problems, found, shards=3)
    first = {path.name: path.stat().st_mtime_ns for path in _shards(tmp_path, draw(tmp_path, "midtrain"))}
    again = {path.name: path.stat().st_mtime_ns for path in _shards(tmp_path, draw(tmp_path, "midtrain"))}
    assert first == again and len(first) == 3
    store.write_shard(tmp_path / "verdicts", 1, Verdict, [
        replace(one, right=False, reason="different")
        for one in store.read_shard(tmp_path / "verdicts" / "00001.parquet", Verdict)
    ])  # fmt: skip
    store.finish(tmp_path / "verdicts", Verdict)
    changed = {path.name: path.stat().st_mtime_ns for path in _shards(tmp_path, draw(tmp_path, "midtrain"))}
    assert [name for name in first if first[name] != changed[name]] == ["00001.parquet"]


def test_a_text_that_changed_makes_its_shard_again(tmp_path: Path) -> None:
    write_run(tmp_path, [EASY, HARD], [told(HARD, True, "old")])
    draw(tmp_path, "midtrain")
    write_run(tmp_path, [EASY, HARD], [told(HARD, True, "new")])  # with the id of the old one
    (one,) = draw(tmp_path, "midtrain")
    assert one.messages[1].content == "new"


def test_worker_processes_choose_the_same(tmp_path: Path) -> None:
    problems, found = world(60)
    write_run(tmp_path, problems, found, shards=2)
    here = [draw(tmp_path, name, RULES[name]) for name in ("dpo", "rlvr")]
    for name in ("dpo", "rlvr"):
        shutil.rmtree(tmp_path / "sets" / name)
        sets.make(name, tmp_path, replace(Settings(), **{name: RULES[name]}), 1, PROMPT, Engine("processes", 2))  # type: ignore[arg-type]
    assert [store.read(tmp_path / "sets" / name, sets.KIND[name]) for name in ("dpo", "rlvr")] == here  # type: ignore[index]


def _shards(root: Path, _: object) -> list[Path]:
    return sorted((root / "sets" / "midtrain").glob("*.parquet"))


def test_what_is_not_aligned_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, [EASY, HARD], rollouts(EASY, 1, 2) + rollouts(HARD, 1))
    verdicts = store.read(tmp_path / "verdicts", Verdict)
    store.write(tmp_path / "verdicts", Verdict, verdicts[::-1])
    with pytest.raises(RecordError) as error:
        sets.make("midtrain", tmp_path, Settings(), 1, PROMPT, HERE)
    path = tmp_path / "verdicts"
    assert str(error.value) == (
        f"{path}/00000.parquet: is not aligned with {tmp_path}/rollouts/00000.parquet. "
        f"Delete the folder {path} to make it again."
    )
    store.write(tmp_path / "verdicts", Verdict, verdicts, shard_rows=1)
    with pytest.raises(RecordError, match="has 3 shards, 1 were expected, one for each of problems"):
        sets.make("midtrain", tmp_path, Settings(), 1, PROMPT, HERE)
    assert not (tmp_path / "sets" / "midtrain" / store.MANIFEST).exists()


def test_samples_are_prompt_stored_ids_and_end_of_turn(tmp_path: Path, chat: Chat) -> None:
    ids = (7, 9, 5)
    write_run(tmp_path, [EASY, HARD], [told(HARD, True, "a text of which these are not the ids", tokens=ids)])
    draw(tmp_path, "midtrain")
    shard, measures = (tmp_path / name / "00000.parquet" for name in ("sets/midtrain", "measures"))
    (sample,), (tokens,), lost = curate.samples(shard, measures, chat, sequence_length=100)
    prompt = chat.prompt_ids(HARD.statement)
    assert tokens.tolist() == [*prompt, *ids, chat.end] and tokens.dtype == np.int32 and not lost
    size = len(tokens)
    assert (sample.num_tokens, sample.prompt_len) == (size, len(prompt))
    assert curate.samples(shard, measures, chat, sequence_length=size)[0] == [sample]
    kept, sequences, lost = curate.samples(shard, measures, chat, sequence_length=size - 1)
    assert kept == sequences == [] and lost == {"longer than sequence_length": 1}
    write_run(tmp_path, [EASY, HARD], [told(HARD, True, "a text of which these are not the ids", tokens=(7, 9, 6))])
    (other,), _, _ = curate.samples(shard, measures, chat, sequence_length=100)
    assert other == replace(sample, id=other.id) and other.id != sample.id
    write_run(tmp_path, [EASY, HARD], [])
    with pytest.raises(RecordError, match="holds no measure of rollout"):
        curate.samples(shard, measures, chat, sequence_length=100)


def test_settings_that_cannot_be_are_refused() -> None:
    near = "near is a similarity above 0. Write 1.0 to drop exact copies only, 2.0 to drop none."
    wrong: list[tuple[type, dict[str, Any], str]] = [
        (Midtrain, {"per_problem": -1}, "per_problem is a number of rollouts, 0 for all."),
        (Sft, {"levels": ("colege",)}, "levels has colege. Known here: elementary, middle, high school, college, gr"),
        (Midtrain, {"near": 0.0}, near),
        (Sft, {"near": -1.0}, near),
        (Sft, {"per_problem": 0}, "per_problem must be at least 1, size and hardness 0 or more."),
        (Sft, {"keep_easier": 1.5}, "keep_easier, max_pass_rate and domain_power are shares, 0 to 1 was expected."),
        (LevelWeights, {"college": -1.0}, "a level's weight is 0 or more, and one of them above 0."),
        (Dpo, {"max_length_ratio": 0.5}, "per_problem and max_length_ratio must be at least 1 and size 0 or more."),
        (Dpo, {"max_auc": 0.4}, "max_auc must lie in 0.5 to 1"),
        (Rlvr, {"min_pass_rate": 0.6, "max_pass_rate": 0.5}, "0 <= min_pass_rate <= max_pass_rate <= 1 was expected"),
        (Rlvr, {"disjoint_from": ("base",)}, 'disjoint_from has base; "sft" and "dpo" can stand there.'),
    ]
    for kind, values, message in wrong:
        with pytest.raises(ValueError) as error:
            kind(**values)
        assert message in str(error.value)
