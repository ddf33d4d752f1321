"""Sources and benchmarks of a recipe, from files and from the toy world."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from algorist import recipe, store
from algorist.data import intake, sources
from algorist.data.intake import Count, Places
from algorist.data.sources import Settings, Source
from algorist.errors import RecipeError, RecordError
from algorist.records import Defect, Problem, Rollout
from algorist.toy import world
from algorist.verify.pool import Pool

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
TOY = world.Settings(problems=30, held_out=10, fewest_steps=1, most_steps=4)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(workers=2, seconds=5.0) as one:
        yield one


def write_rows(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def lines(path: Path, *rows: tuple[str, str]) -> str:
    return write_rows(path, *({"question": q, "answer": a} for q, a in rows))


def settings(*problems: str, **more: object) -> Settings:
    return Settings(problems=problems, **more)  # type: ignore[arg-type]


def shards(folder: Path, name: str, kind: type) -> list[list]:
    return [store.read_shard(folder / name / shard, kind) for shard in store.manifest(folder / name).shards]


def test_the_toy_world(tmp_path: Path, pool: Pool) -> None:
    (count,) = sources.write_sources(tmp_path, Settings(), TOY, 1, pool)
    assert store.read(tmp_path / "problems", Problem) == world.problems(1, "train", 30, range(1, 5), TOY.distractors)
    assert (count.name, count.rows, count.problems, count.traces) == ("toy", 30, 30, 0)
    assert store.read(tmp_path / "traces", Rollout) == store.read(tmp_path / "defects", Defect) == []


def test_shards_follow_the_sources_and_never_mix_two(tmp_path: Path, pool: Pool, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(intake, "SHARD_ROWS", 2)
    one = lines(tmp_path / "one.jsonl", *((f"What is {n} + 1?", str(n + 1)) for n in range(3)), ("What?", ""))
    two = lines(tmp_path / "two.jsonl", ("what is 0 + 1?", "1"), ("", "1"), ("Q", "n/a"), ("R", ""))
    counts = sources.write_sources(tmp_path / "s", settings(one, "toy", two), TOY, 1, pool)
    found = shards(tmp_path / "s", "problems", Problem)
    assert [len(shard) for shard in found] == [2, 1] + [2] * 15 + [1]
    assert [[problem.row for problem in shard] for shard in found[:2]] == [[0, 1], [2]]
    assert {problem.source for problem in found[0] + found[1]} == {one} and found[-1][0].source == two
    assert not {one, two} & {problem.source for shard in found[2:-1] for problem in shard}
    assert [
        [(defect.row, defect.reason) for defect in shard] for shard in shards(tmp_path / "s", "defects", Defect)
    ] == [
        [(3, "no answer")],
        [(1, "no statement"), (2, "no answer")],
        [(3, "no answer")],
    ]
    assert store.manifest(tmp_path / "s" / "problems").dropped == {"no answer": 3, "no statement": 1}
    assert len(shards(tmp_path / "s", "traces", Rollout)) == len(found)
    assert sources.read_counts(tmp_path / "s") == counts
    said = store.read_json(tmp_path / "s" / sources.COUNTS)["sources"]
    store.write_json(tmp_path / "s" / sources.COUNTS, {"sources": [{**one, "older": [0, 2]} for one in said]})
    assert sources.read_counts(tmp_path / "s") == counts


def test_the_same_sources_give_the_same_shards(tmp_path: Path, pool: Pool) -> None:
    one, two = lines(tmp_path / "one.jsonl", ("A?", "1"), ("B?", "")), lines(tmp_path / "two.jsonl", ("C?", "2"))
    sources.write_sources(tmp_path / "a", settings(one, two), TOY, 1, pool)
    before = {name: store.manifest(tmp_path / "a" / name) for name in ("problems", "traces", "defects")}
    sources.write_sources(tmp_path / "a", settings(one, two), TOY, 1, pool)
    assert before == {name: store.manifest(tmp_path / "a" / name) for name in before}
    second = store.facts(tmp_path / "a" / "problems" / "00001.parquet").content
    sources.write_sources(tmp_path / "a", settings(two), TOY, 1, pool)
    assert store.facts(tmp_path / "a" / "problems" / "00000.parquet").content == second
    assert len(store.manifest(tmp_path / "a" / "problems").shards) == 1


def trace(question: str, text: str, gold: str = "4", **more: object) -> dict:
    return {"question": question, "gold": gold, "completion": text, "model": "m", **more}


def test_traces_of_one_statement_come_together(tmp_path: Path, pool: Pool, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Whether its rows are neighbours, far apart, in another source, or without a gold answer."""
    monkeypatch.setattr(intake, "SHARD_ROWS", 2)
    monkeypatch.setattr(intake, "WAITING_TEXT", 1)
    one = write_rows(
        tmp_path / "one.jsonl",
        trace("A?", "a0"),
        trace("A?", "a1"),
        trace("B?", "b0"),
        trace("C?", "c0"),
        trace("a? ", "a2", correct=False),
        trace("D?", "d0", gold="5"),
        trace("D?", "d1", gold="6"),
    )
    bare = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": t}]} for q, t in
            (("C?", "c1"), ("E?", "e0"), ("Nobody?", "n0"))]  # fmt: skip
    two = write_rows(tmp_path / "two.jsonl", *bare)
    three = write_rows(tmp_path / "three.jsonl", trace("E?", "e1"), trace("A?", "a3"), {"question": "F?", "gold": "1"})
    counts = sources.write_sources(tmp_path / "s", settings(one, two, three), TOY, 1, pool)
    problems, found = shards(tmp_path / "s", "problems", Problem), shards(tmp_path / "s", "traces", Rollout)
    assert [[problem.statement for problem in shard] for shard in problems] == [
        ["A?", "B?"], ["C?", "D?"], ["D?"], ["E?", "A?"], ["F?"]
    ]  # fmt: skip
    assert [[rollout.text for rollout in shard] for shard in found] == [
        ["a0", "a1", "a2", "a3", "b0"], ["c0", "c1", "d0", "d1"], [], ["e1", "e0"], []
    ]  # fmt: skip
    for ours, theirs in zip(problems, found, strict=True):
        assert {rollout.problem_id for rollout in theirs} <= {problem.id for problem in ours}
        assert len({rollout.id for rollout in theirs}) == len(theirs)
    assert [rollout.index for rollout in found[0]] == [0, 1, 2, 3, 0]
    assert (found[0][2].label, found[0][2].source, found[0][2].row) == (False, one, 4)
    assert [(c.rows, c.problems, c.repeats, c.goldless, c.traces) for c in counts] == [
        (7, 5, 2, 0, 7), (3, 0, 0, 2, 2), (3, 3, 0, 0, 2)
    ]  # fmt: skip
    assert counts[1].refused == {"no gold answer": 1}
    (defect,) = store.read(tmp_path / "s" / "defects", Defect)
    assert (defect.source, defect.row, defect.reason, defect.text) == (two, 2, "no gold answer", "n0")
    assert not (tmp_path / "s" / ".waiting").exists()


def test_rows_add_up_and_traces_of_refused_rows_are_counted(tmp_path: Path, pool: Pool) -> None:
    path = write_rows(
        tmp_path / "one.jsonl",
        trace("A?", "a0", sample=0),
        trace("A?", "a0", sample=0),
        trace("A?", "a0", sample=1),
        trace("B?", " "),
        trace("Prove that A.", "p0"),
        trace("", "p0"),
        {"problem_id": Problem.of("A?", "4").id, "response": "a9"},
    )
    (count,) = sources.write_sources(tmp_path / "s", settings(path), TOY, 1, pool)
    assert (count.rows, count.problems, count.repeats, count.goldless, count.traces) == (7, 2, 2, 1, 3)
    assert count.refused == {"proof question": 1, "no statement": 1}
    assert count.rows == count.problems + count.repeats + count.goldless + sum(count.refused.values())
    assert count.traces_refused == {"same rollout twice": 1, "empty response": 1, "of a row that was refused": 2}
    assert count.noted == {"same text again": 1}
    reasons = Counter(defect.reason for defect in store.read(tmp_path / "s" / "defects", Defect))
    assert reasons == {"proof question": 1, "no statement": 1, "same rollout twice": 1, "empty response": 1,
                       "noted: same text again": 1}  # fmt: skip


def test_a_source_with_keys_of_its_own(tmp_path: Path, pool: Pool) -> None:
    path = write_rows(
        tmp_path / "x.jsonl",
        {
            "text": "A?",
            "meta": {"gold": "4", "hard": "AIME"},
            "output": "<|begin_of_thought|>\nh\n<|end_of_thought|> 4",
        },
    )
    mine = Source(
        path,
        columns={"statement": "text", "answer": "meta.gold", "level": "meta.hard", "text": "output"},
        licence="MIT",
        levels={"aime": "graduate"},
        sampler="R1",
    )
    sources.write_sources(tmp_path / "s", Settings(sources={"mine": mine}), TOY, 1, pool)
    (problem,), (rollout,) = (
        store.read(tmp_path / "s" / "problems", Problem),
        store.read(tmp_path / "s" / "traces", Rollout),
    )
    assert (problem.statement, problem.answer, problem.level, problem.licence) == ("A?", "4", "graduate", "MIT")
    assert (problem.source, rollout.source, rollout.sampler) == ("mine", "mine", "R1")
    assert rollout.text == "<think>\nh\n</think>\n\n4"
    without = Source(path, columns=mine.columns, traces=False)
    (count,) = sources.write_sources(tmp_path / "t", Settings(sources={"mine": without}), TOY, 1, pool)
    assert (count.problems, count.traces) == (1, 0)


def test_a_recipe_says_it_in_a_few_lines(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(
        """name = "r"
[data]
problems = ["a.jsonl", "b.parquet"]
[data.sources.mine]
path = "hf://owner/name@main#train"
columns = { statement = "text" }
licence = "MIT"
levels = { "Level 5" = "college", "*" = "high school" }
"""
    )
    read = recipe.read(path, {"data": (Settings,)})
    data = read.of("data", Settings)
    mine = data.sources["mine"]
    assert list(data.named()) == ["a.jsonl", "b.parquet", "mine"]
    assert (mine.columns, mine.levels["Level 5"], mine.licence, mine.traces) == (
        {"statement": "text"},
        "college",
        "MIT",
        True,
    )
    again = tmp_path / "again.toml"
    again.write_text(read.dumps())
    assert recipe.read(again, {"data": (Settings,)}) == read
    changed = recipe.read(path, {"data": (Settings,)}, ["data.sources.mine.traces=false", "data.sources.b.path=c.csv"])
    assert [(one.path, one.traces) for one in changed.of("data", Settings).sources.values()] == [
        ("hf://owner/name@main#train", False), ("c.csv", True)
    ]  # fmt: skip
    for text, words in [
        ("data.sources.mine.colums={}", "[data] sources.mine.colums is not a key of this table. Did you mean columns?"),
        ("data.sources.b.traces=false", "[data] sources.b: path must say where the source is."),
        ("data.sources.mine.levels={a='hard'}", '[data] sources.mine: levels says "hard", one of elementary, middle, '),
        ("data.sources='x'", '[data] sources is "x", a table of items, each a table with path, columns'),
    ]:
        with pytest.raises(RecipeError) as refused:
            recipe.read(path, {"data": (Settings,)}, [text])
        assert words in str(refused.value)


def test_a_benchmark_question_asked_twice_is_kept_once(tmp_path: Path) -> None:
    exam = lines(tmp_path / "exam.jsonl", ("What is 7 * 7?", "49"), ("what  is 7 * 7?", "49"))
    sources.write_benchmarks(tmp_path / "b", Settings(benchmarks={"exam": exam}), TOY, 1)
    assert [p.answer for p in sources.read_benchmarks(tmp_path / "b", ["exam"])["exam"]] == ["49"]


def test_a_benchmark_question_whose_answers_disagree_is_not_scored_but_kept(tmp_path: Path) -> None:
    exam = lines(tmp_path / "exam.jsonl", ("Which is prime?", "A"), ("Which is prime?", "C"), ("What is 7 * 7?", "49"))
    made = sources.write_benchmarks(tmp_path / "b", Settings(benchmarks={"exam": exam}), TOY, 1)
    assert made["exam"].rows == 1 and made["exam"].dropped == {"same statement, different answers": 2}
    assert [p.answer for p in sources.read_benchmarks(tmp_path / "b", ["exam"])["exam"]] == ["49"]
    assert len(sources.read_questions(tmp_path / "b", ["exam"])["exam"]) == 2  # an unscored question leaks, too


def test_a_benchmark_question_without_an_answer_is_not_scored(tmp_path: Path) -> None:
    exam = lines(tmp_path / "exam.jsonl", ("What is 7 * 7?", "49"), ("Draw it.", ""))
    made = sources.write_benchmarks(tmp_path / "b", Settings(benchmarks={"exam": exam}), TOY, 1)
    assert made["exam"].rows == 1 and made["exam"].dropped == {"no answer": 1}
    none = lines(tmp_path / "none.jsonl", ("Draw it.", ""))
    with pytest.raises(RecipeError, match=r"holds no problem that can be scored \(1 no answer\)"):
        sources.write_benchmarks(tmp_path / "n", Settings(benchmarks={"none": none}), TOY, 1)


def test_columns_have_the_names_that_the_recipe_says(tmp_path: Path, pool: Pool) -> None:
    told = write_rows(tmp_path / "frage.jsonl", {"frage": "What is 2 + 3?", "antwort": "5"})
    usual = lines(tmp_path / "usual.jsonl", ("What is 2 + 4?", "6"))
    columns = {"statement": "frage", "answer": "antwort"}
    sources.write_sources(tmp_path / "s", settings(told, usual, columns=columns), TOY, 1, pool)
    assert [problem.answer for problem in store.read(tmp_path / "s" / "problems", Problem)] == ["5", "6"]
    with pytest.raises(RecipeError) as refused:
        sources.write_sources(tmp_path / "t", settings(usual, columns=columns), TOY, 1, pool)
    assert str(refused.value) == (
        '[data] columns.statement = "frage": no source has such a column. Name one that is there.'
    )


def test_a_missing_source_shows_before_the_others_are_read(tmp_path: Path, pool: Pool) -> None:
    one = lines(tmp_path / "one.jsonl", ("What is 2 + 3?", "5"))
    with pytest.raises(RecipeError, match="there is no such file"):
        sources.write_sources(tmp_path / "s", settings(one, str(tmp_path / "none.jsonl")), TOY, 1, pool)
    assert not (tmp_path / "s").exists()
    without = write_rows(tmp_path / "bare.jsonl", {"question": "Q"})
    with pytest.raises(RecordError) as refused:
        sources.write_sources(tmp_path / "s", settings(without), TOY, 1, pool)
    assert str(refused.value) == (
        f"{without}: no column holds the answer; found question, expected gold or answer or expected_answer or "
        'final_answer or solution or ground_truth_solution. Map another one: columns = { answer = "<column>" }.'
    )


def test_nothing_left_is_an_error_with_the_reasons(tmp_path: Path, pool: Pool) -> None:
    path = lines(tmp_path / "p.jsonl", ("What is 7 * 7?", ""), ("Prove that.", "1"), ("Q", "n/a"))
    with pytest.raises(RecipeError) as refused:
        sources.write_sources(tmp_path / "s", settings(path), TOY, 1, pool)
    assert str(refused.value) == (
        "[data] problems: none of 3 rows became a problem (2 no answer, 1 proof question). Name other files."
    )


def test_procedural_problems_are_a_source(tmp_path: Path, pool: Pool) -> None:
    pytest.importorskip("reasoning_gym")
    where = "gym://leg_counting?size=20&seed=1"
    (count,) = sources.write_sources(tmp_path, settings(where), TOY, 1, pool)
    found = store.read(tmp_path / "problems", Problem)
    assert (count.rows, count.problems, len(found)) == (20, 20, 20)
    assert (found[3].row, found[3].source, found[3].domain, found[3].licence) == (3, where, "arithmetic", "Apache-2.0")


def test_a_folder_of_parquet_files_is_one_source(tmp_path: Path, pool: Pool) -> None:
    (tmp_path / "set").mkdir()
    for part in range(2):
        rows = [{"problem": f"{part}{n}?", "answer": "1", "generations": ["1", "2"]} for n in range(3)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set" / f"{part}.parquet")
    made = settings(str(tmp_path / "set"))
    (count,) = sources.write_sources(tmp_path / "s", made, TOY, 1, pool)
    assert [problem.row for problem in store.read(tmp_path / "s" / "problems", Problem)] == [0, 1, 2, 3, 4, 5]
    assert (count.problems, count.traces) == (6, 12)
    assert [path.name for path in sources.files_of(made)] == ["0.parquet", "1.parquet"]


def test_places_remember_many_ids(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(intake, "_RECENT", 7)
    places, ids = Places(), [Problem.of(f"Q{n}", "1").id for n in range(100)]
    for number, identity in enumerate(ids):
        assert places.get(identity) is None
        places.add(identity, number)
    assert [places.get(identity) for identity in ids] == list(range(100))
    assert places.get("f" * 16) is None


def test_the_table_of_counts() -> None:
    count = Count("math.jsonl", 7_500, 7_382, 0, 0, 12, Counter({"several boxed answers": 114, "no answer": 4}))
    assert sources.counts_text([count]).splitlines() == [
        "      rows   problems     traces  source",
        "     7,500      7,382         12  math.jsonl",
        "                                  refused: 114 several boxed answers",
        "                                  refused: 4 no answer",
    ]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
def test_real_rollouts(tmp_path: Path, pool: Pool) -> None:
    (count,) = sources.write_sources(tmp_path, settings(str(SHARED / "rollouts_real.jsonl")), TOY, 1, pool)
    assert (count.rows, count.problems, count.traces) == (5568, 1416, 5565)
    assert count.refused == {"no gold answer": 3}
    found = store.read(tmp_path / "traces", Rollout)
    assert Counter(rollout.finish for rollout in found) == {"stop": 5444, "length": 121}
    assert all(rollout.label is not None for rollout in found)
    assert not any("_of_thought|>" in rollout.text for rollout in found)


def test_an_empty_benchmark_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("")
    with pytest.raises(RecipeError) as refused:
        sources.write_benchmarks(tmp_path / "b", Settings(benchmarks={"exam": str(path)}), TOY, 1)
    why = "holds no problem that can be scored. Name a file of problems with answers."
    assert str(refused.value) == f'[data] benchmarks.exam = "{path}": {why}'


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"benchmarks": {}}, "benchmarks must name at least one file."),
        ({"ngram": 0}, "ngram must be at least 1 and workers at least 0."),
        ({"near": 2.0}, "fuzzy and near must lie in 0..1."),
        ({"problems": ("a", "a")}, '"a" is named twice. Name each source once.'),
        ({"problems": ("a",), "sources": {"a": Source("b")}}, '"a" is named twice. Name each source once.'),
    ],
)
def test_settings_that_cannot_be(keys: dict, words: str) -> None:
    with pytest.raises(ValueError) as refused:
        Settings(**keys)
    assert str(refused.value) == words


def test_a_defect_that_is_none_cannot_be_refused() -> None:
    with pytest.raises(
        ValueError, match='refuse: "proofs" is no defect that can be chosen. There are proof question, '
    ):
        Settings(refuse=("proofs",))
