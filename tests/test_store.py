"""Records on disk: the same content has the same id, nested records come back, shards speak of themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from algorist import store
from algorist.errors import RecordError
from algorist.records import Example, Measure, Message, Problem, Rollout

EXAMPLE = Example("a", "p", "r", (Message("user", "hi"), Message("assistant", "yo")), 3, None, "", "", "s", "MIT")


@pytest.mark.parametrize(
    "records",
    [
        [EXAMPLE, EXAMPLE],
        [Measure("r", "p", 3, "", "loop", (1, 2, 3)), Measure("q", "p", 0, "", "", ())],
        [Rollout.of("p", "t", "s", tokens=(1, 2), logprobs=(0.5, 0.25), label=False), Rollout.of("p", "u", "s")],
        [Problem.of("Is 1 = 1?", "yes", row=3, licence="MIT")],
    ],
)
def test_what_is_written_is_read(records: list, tmp_path: Path) -> None:
    made = store.write(tmp_path, type(records[0]), records)
    assert store.read(tmp_path, type(records[0])) == records
    assert list(store.stream(tmp_path, type(records[0]))) == records and made.rows == len(records)


def test_the_id_is_of_content_and_parents_and_the_content_of_records_alone(tmp_path: Path) -> None:
    one, again, other, onward = (
        store.write(tmp_path / name, Example, records, parents=parents)
        for name, records, parents in (
            ("a", [EXAMPLE], ["x"]),
            ("b", [EXAMPLE], ["x"]),
            ("c", [EXAMPLE, EXAMPLE], ["x"]),
            ("d", [EXAMPLE], ["y"]),
        )
    )
    assert one == again and one.content == onward.content != other.content
    assert len({one.id, other.id, onward.id}) == 3


def test_empty_shards_count_because_shards_of_other_data_sets_stand_beside_them(tmp_path: Path) -> None:
    store.write_shard(tmp_path / "a", 0, Example, [EXAMPLE])
    for index, records in enumerate(([], [EXAMPLE])):
        store.write_shard(tmp_path / "b", index, Example, records)
    assert store.finish(tmp_path / "a", Example).content != store.finish(tmp_path / "b", Example).content


def test_single_rows_are_read_from_their_shards_alone(tmp_path: Path) -> None:
    problems = [Problem.of(f"What is {number}?", str(number)) for number in range(7)]
    store.write(tmp_path, Problem, problems, shard_rows=3)
    assert store.take(tmp_path, Problem, [6, 0, 4, 0]) == [problems[place] for place in (6, 0, 4, 0)]
    (tmp_path / "00001.parquet").write_bytes((tmp_path / "00001.parquet").read_bytes()[:4])
    with pytest.raises(RecordError, match="00001.parquet"):
        store.take(tmp_path, Problem, [3])


def test_shards_that_a_longer_attempt_left_go(tmp_path: Path) -> None:
    for index in range(3):
        store.write_shard(tmp_path, index, Example, [EXAMPLE])
    made = store.finish(tmp_path, Example, shards=["00000.parquet", "00001.parquet"])
    assert made.rows == 2 and sorted(path.name for path in tmp_path.glob("*.parquet")) == list(made.shards)


def test_shards_count_what_was_left_out_in_making_them(tmp_path: Path) -> None:
    store.write_shard(tmp_path, 0, Example, [EXAMPLE], dropped={"twice": 2, "never": 0}, made_from="abc")
    store.write_shard(tmp_path, 1, Example, [], dropped={"twice": 1, "empty": 4})
    said = store.facts(tmp_path / "00000.parquet")
    assert (said.rows, said.made_from, said.dropped) == (1, "abc", {"twice": 2, "never": 0})
    assert store.finish(tmp_path, Example).dropped == {"twice": 3, "empty": 4}
    assert store.finish(tmp_path, Example, dropped={"other": 1}).dropped == {"other": 1}


def test_what_is_no_shard_of_ours_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "00000.parquet"
    pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(RecordError, match=r"00000\.parquet: is no shard of ours .* Delete the task's folder"):
        store.facts(path)
    path.write_bytes(b"PAR1 half")
    for read in (store.facts, lambda p: store.read_shard(p, Example), lambda p: store.read_columns(p, ["id"])):
        with pytest.raises(RecordError, match="Delete the task's folder"):
            read(path)
