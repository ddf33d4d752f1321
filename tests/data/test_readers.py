"""Rows of files, folders and data sets, and the errors of those that cannot be read."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from algorist.data import readers
from algorist.data.readers import Address, read_rows
from algorist.errors import RecipeError, RecordError

ROWS = [{"question": f"What is {n} + 2?", "gold": str(n + 2), "level": "Level 1"} for n in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def test_all_file_types_give_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(LINES)
    with gzip.open(tmp_path / "p.jsonl.gz", "wt") as file:
        file.write(LINES)
    with pa.output_stream(tmp_path / "p.jsonl.zst", compression="zstd") as packed:
        packed.write(LINES.encode())
    (tmp_path / "p.json").write_text(json.dumps(ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "p.parquet")
    with (tmp_path / "p.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    for path in sorted(tmp_path.iterdir()):
        assert list(read_rows(str(path))) == ROWS, path
    assert list(read_rows(str(tmp_path))) == ROWS * 6


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"a": 2}\n')
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "README.md").write_text("no data")
    assert [row["a"] for row in read_rows(tmp_path)] == [1, 2]


def test_a_file_is_read_as_its_rows_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\nbroken')
    rows = read_rows(path)
    assert [next(rows)["a"], next(rows)["a"]] == [1, 2]
    with pytest.raises(RecordError, match=":3: not a JSON object"):
        next(rows)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"a": 1 "b"}', "Expecting ',' delimiter, column 9"),
        (b'{"question": "Q", "answ', "Unterminated string starting at, column 19"),
        (b"[1, 2]", "found a list"),
        (b'{"a": "\xff"}', "not UTF-8, byte 8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_an_unreadable_line_is_named(tmp_path: Path, line: bytes, found: str) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_bytes(b'{"question": "Q", "answer": "1"}\n\n' + line)
    with pytest.raises(RecordError) as error:
        list(read_rows(path))
    assert str(error.value) == f"{path}:3: not a JSON object ({found}). Mend or delete the line."


def message(path: Path | str) -> str:
    with pytest.raises((RecipeError, RecordError)) as error:
        list(read_rows(path))
    return f"{error.type.__name__} {error.value}".replace(str(path), Path(path).name)


def test_messages(tmp_path: Path) -> None:
    assert message(tmp_path / "x.jsonl") == (
        "RecipeError x.jsonl: there is no such file. Check the path; a relative one starts where the command is run."
    )
    assert message(tmp_path / "x.txt") == (
        "RecipeError x.txt: the extension .txt does not say how to read it. "
        "Expected one of .jsonl, .jsonl.gz, .jsonl.zst, .json, .csv, .parquet."
    )
    (tmp_path / "empty").mkdir()
    assert message(tmp_path / "empty").startswith("RecipeError empty: there is no file in this folder to read.")
    (tmp_path / "p.parquet").write_bytes(b"not parquet")
    assert "p.parquet: not readable as Parquet (" in message(tmp_path / "p.parquet")
    (tmp_path / "p.json").write_text('[{"question": "Q"},\n x]')
    assert message(tmp_path / "p.json").startswith("RecordError p.json:2: not JSON (Expecting value, column 2).")
    (tmp_path / "p.csv").write_text("a,b\n1,2\n1,2,3\n")
    assert message(tmp_path / "p.csv").startswith("RecordError p.csv:3: not readable as CSV (more cells than columns).")
    (tmp_path / "p.jsonl.gz").write_bytes(b"not packed at all")
    assert message(tmp_path / "p.jsonl.gz").startswith("RecordError p.jsonl.gz:1: cannot be unpacked (")


def test_addresses_of_the_hub() -> None:
    assert Address.of("hf://open-r1/OpenR1-Math-220k") == Address("open-r1/OpenR1-Math-220k")
    assert Address.of("hf://a/b:main@v1.0#test") == Address("a/b", "main", "v1.0", "test")
    assert Address.of("hf://a/b@0123#validation") == Address("a/b", "", "0123", "validation")
    with pytest.raises(RecipeError, match="is no data set's name"):
        Address.of("hf://")


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):  # type: ignore[no-untyped-def]
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return datasets


def test_a_data_set_saved_to_disk(tmp_path: Path, library) -> None:  # type: ignore[no-untyped-def]
    library.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    assert list(read_rows(str(tmp_path / "one"))) == ROWS
    parts = {"train": library.Dataset.from_list(ROWS[:3]), "test": library.Dataset.from_list(ROWS[3:])}
    library.DatasetDict(parts).save_to_disk(tmp_path / "two")
    assert list(read_rows(str(tmp_path / "two"))) == ROWS[:3]
    assert list(read_rows(f"{tmp_path / 'two'}#test")) == ROWS[3:]
    with pytest.raises(RecipeError, match=r"two: which split\? Write .*two#train; it has train, test."):
        list(read_rows(f"{tmp_path / 'two'}#dev"))


def test_a_data_set_by_name_is_loaded_by_the_library(tmp_path: Path, library) -> None:  # type: ignore[no-untyped-def]
    """The way by name, on a folder: what a hub repository holds, without the network."""
    (tmp_path / "set").mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS[:3]), tmp_path / "set" / "train-00000.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS[3:]), tmp_path / "set" / "test-00000.parquet")
    where = f"hf://{tmp_path / 'set'}"
    assert list(read_rows(where)) == ROWS[:3]
    assert list(read_rows(f"{where}#test")) == ROWS[3:]
    with pytest.raises(RecipeError) as refused:
        list(read_rows(f"{where}#dev"))
    assert str(refused.value).startswith(f"{where}#dev: could not be loaded (ValueError: Unknown split")
    assert str(refused.value).endswith("Check name, configuration, revision and split, and the network.")


def test_a_data_set_with_code_is_refused(tmp_path: Path, library) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "evil.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    with pytest.raises(RecipeError, match="could not be loaded"):
        list(read_rows(f"hf://{tmp_path / 'evil'}"))
    assert not Path("ran").exists()


def test_without_the_library_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(RecipeError) as refused:
        list(read_rows("hf://a/b"))
    assert str(refused.value) == (
        "hf://a/b: reading it takes the datasets library, which is not here. Install the extra with "
        "pip install '.[hub]'."
    )


def test_the_files_of_a_source_are_those_that_it_is_read_from(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jsonl").write_text(LINES)
    assert readers.files_of(str(tmp_path / "folder")) == (tmp_path / "folder" / "a.jsonl",)
    assert readers.files_of(f"hf://a/b@{'0' * 40}") == readers.files_of("gym://leg_counting?size=7") == ()
