"""Token ids on disk: each document comes back, planning and opening read none, and what does not belong is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from algorist import store, tokens
from algorist.errors import RecordError
from algorist.records import Pair, Problem, Sample
from algorist.tokens import Corpus, Ids
from reading import bytes_read, counted

LENGTHS = [3, 1, 700, 2, 40, 5, 1]


def documents(lengths: list[int], seed: int = 0) -> list[Ids]:
    """Random ids, the largest that fit among them."""
    return [np.random.default_rng([seed, i]).integers(0, 2**31, n).astype(np.int32) for i, n in enumerate(lengths)]


def samples(found: list[Ids]) -> list[Sample]:
    return [Sample(f"s{i}", "p", "r", len(ids), i % len(ids)) for i, ids in enumerate(found)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Samples in shards of three."""
    found = documents(LENGTHS)
    tokens.write(tmp_path, Sample, samples(found), found, shard_rows=3)
    return tmp_path


def test_documents_come_back_in_any_order(folder: Path) -> None:
    corpus, expected = Corpus.open(folder, Sample), documents(LENGTHS)
    assert corpus.lengths.tolist() == LENGTHS and len(corpus) == len(LENGTHS)
    assert corpus.prompt_lens.tolist() == [one.prompt_len for one in samples(expected)]
    for place in (6, 0, 3, 2, 5, 1, 4, 2):
        assert corpus[place].dtype == np.int32 and corpus[place].tolist() == expected[place].tolist()
    assert [ids.tolist() for ids in corpus] == [ids.tolist() for ids in expected]
    for outside in (-1, len(LENGTHS)):
        with pytest.raises(IndexError):
            corpus[outside]


def test_of_pairs_the_chosen_one_stands_before_the_rejected_one(tmp_path: Path) -> None:
    found = documents([4, 9, 3, 2])
    pairs = [Pair(f"{i}", "p", "c", "r", len(found[2 * i]), len(found[2 * i + 1]), 1 + i) for i in range(2)]
    tokens.write(tmp_path, Pair, pairs, found, shard_rows=1)
    corpus = Corpus.open(tmp_path, Pair)
    assert corpus.lengths.tolist() == [4, 9, 3, 2] and corpus.prompt_lens.tolist() == [1, 1, 2, 2]
    assert [ids.tolist() for ids in corpus] == [ids.tolist() for ids in found]


def test_shards_without_a_document_and_sets_without_a_shard(tmp_path: Path) -> None:
    found = documents([2, 3])
    for index, (first, last) in enumerate(((0, 0), (0, 1), (1, 1), (1, 2), (2, 2))):
        tokens.write_shard(tmp_path / "a", index, Sample, samples(found)[first:last], found[first:last])
    store.finish(tmp_path / "a", Sample)
    assert [ids.tolist() for ids in Corpus.open(tmp_path / "a", Sample)] == [ids.tolist() for ids in found]
    tokens.write(tmp_path / "b", Sample, [], [])
    store.finish(tmp_path / "c", Sample)
    for empty in ("b", "c"):
        assert len(Corpus.open(tmp_path / empty, Sample)) == 0 == len(Corpus.open(tmp_path / empty, Sample).lengths)


def test_the_file_is_flat_little_endian_int32_and_ends_in_its_hash(folder: Path) -> None:
    raw, first = (folder / "00000.ids").read_bytes(), documents(LENGTHS)[:3]
    assert raw[:-16] == b"".join(ids.astype("<i4").tobytes() for ids in first)
    assert raw[-16:].decode() == tokens.digest(first) == store.facts(folder / "00000.parquet").ids


def test_a_digest_depends_on_every_id(folder: Path) -> None:
    one = np.arange(5, dtype=np.int32)
    assert tokens.digest([one]) == tokens.digest([one[:2], one[2:]]) == tokens.digest([one.astype(">i4")])
    assert len({tokens.digest([np.where(one == place, 9, one).astype(np.int32)]) for place in range(5)}) == 5


def test_records_that_say_another_length_are_a_mistake(tmp_path: Path) -> None:
    found = documents([2, 3])
    with pytest.raises(AssertionError, match="the records say how long their token ids are"):
        tokens.write_shard(tmp_path, 0, Sample, samples(found), found[::-1])


def test_token_ids_go_with_their_shard(folder: Path) -> None:
    def names() -> list[str]:
        return sorted(path.name for path in folder.iterdir())

    assert len(names()) == 7
    found = documents([5])
    tokens.write(folder, Sample, samples(found), found)
    assert names() == ["00000.ids", "00000.parquet", "manifest.json"]
    tokens.write_shard(folder, 1, Sample, samples(found), found)
    (folder / "00007.ids").write_bytes(b"left by a kill")
    store.finish(folder, Sample, shards=["00001.parquet"])
    assert names() == ["00001.ids", "00001.parquet", "manifest.json"]
    store.write(folder, Problem, [])
    assert names() == ["00000.parquet", "manifest.json"]


def test_a_shard_is_finished_when_its_ids_are_its_own_and_it_was_made_from_the_same(tmp_path: Path) -> None:
    found, shard, ids = documents([2, 3]), tmp_path / "00000.parquet", tmp_path / "00000.ids"
    assert not tokens.finished(shard, "abc")
    tokens.write_shard(tmp_path, 0, Sample, samples(found), found, made_from="abc")
    assert tokens.finished(shard, "abc") and not tokens.finished(shard, "abd")
    whole = ids.read_bytes()
    for broken in (whole[:-1], b"", whole[:-16] + b"0" * 16):
        ids.write_bytes(broken)
        assert not tokens.finished(shard, "abc")
    ids.unlink()
    assert not tokens.finished(shard, "abc")
    ids.write_bytes(whole)
    assert tokens.finished(shard, "abc")
    shard.unlink()
    assert not tokens.finished(shard, "abc")


def refused(folder: Path) -> str:
    with pytest.raises(RecordError) as error:
        Corpus.open(folder, Sample)
    return str(error.value)


def test_messages(folder: Path) -> None:
    ids, shard = folder / "00001.ids", folder / "00001.parquet"
    again = f"Delete the folder {folder} to make it again."
    whole = ids.read_bytes()
    own = whole[-16:].decode()
    ids.write_bytes(whole + b"\0")
    assert refused(folder) == (
        f"{ids}: holds {len(whole) + 1} bytes, {len(whole)} were expected for the 47 tokens of {shard}. {again}"
    )
    ids.write_bytes(whole[:-16] + b"0123456789abcdef")
    assert refused(folder) == (
        f"{ids}: holds the token ids 0123456789abcdef, {own} belong to 00001.parquet beside it. {again}"
    )
    ids.unlink()
    assert refused(folder) == (
        f"{ids}: there is no such file; the token ids of 00001.parquet were expected in it. {again}"
    )
    ids.write_bytes(whole)
    with pytest.raises(RecordError) as error:
        Corpus.open(folder, Pair)
    assert str(error.value) == f"{folder}: holds Sample records, Pair was asked for. Name another folder."


def test_a_file_that_shrinks_while_it_is_read_is_named(folder: Path) -> None:
    corpus, ids = Corpus.open(folder, Sample), folder / "00000.ids"
    ids.write_bytes(ids.read_bytes()[:8])
    with pytest.raises(RecordError) as error:
        corpus[0]
    again = f"Delete the folder {folder} to make it again."
    assert str(error.value) == f"{ids}: ends before document 0, which was there when the stage began. {again}"
    ids.unlink()
    with pytest.raises(RecordError) as error:
        corpus[0]
    assert str(error.value) == f"{ids}: not readable (No such file or directory). {again}"


def test_a_shard_of_an_older_version_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = documents([2])
    tokens.write(tmp_path, Sample, samples(found), found)
    shard = tmp_path / "00000.parquet"
    pq.write_table(pa.table({"id": ["a"], "tokens": [[1, 2]], "prompt_len": [1]}), shard)
    assert refused(tmp_path) == (
        f"{shard}: has no column num_tokens: an older version wrote it, with the token ids in it. "
        f"Delete the folder {tmp_path} to make it again."
    )


@counted
def test_opening_reads_no_document_and_a_document_no_other(tmp_path: Path) -> None:
    found = documents([30_000] * 40)
    tokens.write(tmp_path, Sample, samples(found), found, shard_rows=10)
    Corpus.open(tmp_path, Sample)  # what is imported on the way is read before
    before = bytes_read()
    corpus = Corpus.open(tmp_path, Sample)
    opened = bytes_read()
    assert corpus[23].tolist() == found[23].tolist()
    once = bytes_read()
    whole = sum(path.stat().st_size for path in tmp_path.glob("*.ids"))
    assert opened - before < whole / 50
    assert 4 * 30_000 <= once - opened < 4 * 30_000 + 2_000
    assert corpus.starts.nbytes + corpus.prompt_lens.nbytes == 12 * 40 + 8
