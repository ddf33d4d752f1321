"""The log of answers: every sample that a server ever gave us, in one SQLite file that outlives the data sets.

A row is addressed by (key, sample). The key is the hash of everything that shapes the answer: a changed prompt or
sampling setting makes other rows, and the old ones stay. No row is ever overwritten or deleted, and each exists once.

One process writes at a time, and while it does nobody reads. What is added is committed before `add` returns: a process
that is killed loses nothing of it, a machine that loses power at most the last moments, which are asked for again. No
memory is shared between processes, so that the file may lie on a network disk. Closed, it is one plain file that any
number of processes read.

What a server refused (a question too long for it) is kept beside, so that it is not asked for ever. To ask it again:
`sqlite3 answers.sqlite 'DELETE FROM refused'`.
"""

from __future__ import annotations

import contextlib
import errno
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from algorist.errors import RecordError, RunError, explain_full_disk

FILE = "answers.sqlite"
_OURS = 0x416C676F  # "Algo": what the file says it belongs to
_VERSION = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT NOT NULL, sample INTEGER NOT NULL, finish TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, num_tokens INTEGER NOT NULL,
    spent_in INTEGER NOT NULL, spent_out INTEGER NOT NULL,
    endpoint TEXT NOT NULL, seconds REAL NOT NULL, at REAL NOT NULL, text BLOB NOT NULL,
    PRIMARY KEY (key, sample));
CREATE TABLE IF NOT EXISTS refused (key TEXT PRIMARY KEY, words TEXT NOT NULL, at REAL NOT NULL);
"""
_COLUMNS = "key, sample, finish, prompt_tokens, num_tokens, spent_in, spent_out, endpoint, seconds, text"


@dataclass(frozen=True)
class Ask:
    """Samples first … first + count - 1 of the answers to one question."""

    key: str  # the caller's hash of everything that shapes the answer
    content: str  # the user's message, or the prompt
    count: int = 1
    first: int = 0
    seed: int | None = None  # of sample 0; sample i has seed + i


@dataclass(frozen=True)
class Answer:
    """One sample."""

    key: str
    index: int  # which sample this is
    text: str
    finish: str  # "stop" or "length"
    prompt_tokens: int  # of the question, as the server counts them; 0 unknown
    num_tokens: int  # of the answer; 0 where the server said only how many its whole reply had
    endpoint: str
    seconds: float  # that the request took
    spent_in: int = 0  # prompt tokens of the request, at the first answer that it brought: sums are what was paid for
    spent_out: int = 0  # completion tokens of the request, likewise


@dataclass(frozen=True)
class Refused:
    """A question that has no answer."""

    key: str
    reason: str  # in plain words, the same for many questions
    words: str  # the server's
    endpoint: str
    count: int  # samples that will not come
    lasting: bool  # the server said no; else it failed too often, and may be asked again


class Answers:
    """An open log; `writing` and `reading` open one."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    def have(self, keys: Iterable[str]) -> set[tuple[str, int]]:
        """The (key, sample) pairs that are there."""
        with _explained(self.path):
            query = "SELECT sample FROM answers WHERE key = ?"
            return {(key, sample) for key in keys for (sample,) in self._connection.execute(query, (key,))}

    def read(self, key: str) -> list[Answer]:
        """The answers to one question in the order of their samples."""
        with _explained(self.path):
            rows = self._connection.execute(f"SELECT {_COLUMNS} FROM answers WHERE key = ? ORDER BY sample", (key,))
            return [_answer(row) for row in rows]

    def missing(self, ask: Ask) -> list[Ask]:
        """What of an ask is not there yet, as asks of neighbouring samples; nothing of what was refused for good."""
        there = {index for _, index in self.have([ask.key])}
        wanted = range(ask.first, ask.first + ask.count)
        if there.issuperset(wanted) or self.refusal(ask.key):
            return []
        starts = [i for i in wanted if i not in there and (i == ask.first or i - 1 in there)]
        ends = [i + 1 for i in wanted if i not in there and (i == wanted[-1] or i + 1 in there)]
        return [replace(ask, first=start, count=end - start) for start, end in zip(starts, ends, strict=True)]

    def refusal(self, key: str) -> str:
        """Why a question was refused, empty where it was not."""
        with _explained(self.path):
            found = self._connection.execute("SELECT words FROM refused WHERE key = ?", (key,)).fetchone()
            return str(found[0]) if found else ""

    def add(self, answers: Sequence[Answer]) -> None:
        """Keep answers; when this returns they survive a kill. Those that are there already stay as they are.

        Raises RunError where the disk is full.
        """
        now = time.time()
        self._commit(
            f"INSERT INTO answers ({_COLUMNS}, at) VALUES ({'?, ' * 10}?) ON CONFLICT (key, sample) DO NOTHING",
            ((*_row(answer), now) for answer in answers),
        )

    def refuse(self, refused: Sequence[Refused]) -> None:
        """Keep what was refused for good."""
        now = time.time()
        rows = [(one.key, one.words or one.reason, now) for one in refused if one.lasting]
        self._commit("INSERT INTO refused VALUES (?, ?, ?) ON CONFLICT (key) DO NOTHING", rows)

    def spent(self) -> tuple[int, int]:
        """(prompt, completion) tokens of all requests whose answers are here."""
        with _explained(self.path):
            query = "SELECT COALESCE(SUM(spent_in), 0), COALESCE(SUM(spent_out), 0) FROM answers"
            tokens_in, tokens_out = self._connection.execute(query).fetchone()
            return int(tokens_in), int(tokens_out)

    def __len__(self) -> int:
        """How many answers there are."""
        with _explained(self.path):
            (count,) = self._connection.execute("SELECT COUNT(*) FROM answers").fetchone()
            return int(count)

    def _commit(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        with _explained(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany(statement, rows)
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a full disk has rolled back already
                    self._connection.execute("ROLLBACK")
                raise


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Answers]:
    """Open a log to add to, made where it is missing; it is locked for everybody else until the block ends.

    Raises RunError where another process has it open, RecordError where the file is no log of answers.
    """
    with explain_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _opened(path, "rwc") as connection:
        with _explained(path):
            _refuse_foreign(path, connection, may_be_new=True)
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # before WAL: then no memory is shared
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("BEGIN EXCLUSIVE")  # the lock is taken by the first write, and kept
            for statement in (
                *_TABLES.split(";"),
                f"PRAGMA application_id = {_OURS}",
                f"PRAGMA user_version = {_VERSION}",
            ):
                connection.execute(statement)
            connection.execute("COMMIT")
        try:
            yield Answers(path, connection)
        finally:
            with contextlib.suppress(sqlite3.Error):  # what was committed is safe; the next to open it tidies up
                connection.execute("PRAGMA journal_mode = DELETE")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Answers]:
    """Open a finished log to read from; any number of processes may at once.

    Raises RecordError where there is no such log, RunError where a process is writing it or was killed while it did.
    """
    if not path.exists():
        raise RecordError(f"{path}: there is no such log of answers. Ask the teacher first.")
    if path.with_name(f"{path.name}-wal").exists():
        raise RunError(
            f"{path}: another process writes this log of answers, or was killed while it did. "
            "Wait for it to end or run the same command again."
        )
    with _opened(path, "ro") as connection:
        with _explained(path):
            _refuse_foreign(path, connection, may_be_new=False)
        yield Answers(path, connection)


@contextlib.contextmanager
def _opened(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    with _explained(path):
        address = f"{path.resolve().as_uri()}?mode={mode}"
        connection = sqlite3.connect(address, uri=True, timeout=1.0, isolation_level=None)
    try:
        with _explained(path):
            connection.execute("PRAGMA page_size = 8192")  # of a new file: answers are long
            connection.execute("PRAGMA cache_size = -32768")  # KiB: memory does not grow with the log
        yield connection
    finally:
        connection.close()


def _refuse_foreign(path: Path, connection: sqlite3.Connection, *, may_be_new: bool) -> None:
    """Raise RecordError unless the file is a log of ours, or an empty one that may become one."""
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    torn = 0 < path.stat().st_size < 100  # less than a header: SQLite would take it for an empty file
    if torn or (not may_be_new if not tables else (owner, version) != (_OURS, _VERSION)):
        raise RecordError(f"{path}: is no log of answers, or of another version. Move it away and run again.")


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours."""
    with explain_full_disk(path):
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_FULL:
                raise OSError(errno.ENOSPC, "no space left") from error
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise RunError(
                    f"{path}: another process has this log of answers open. Wait for it to end or stop it."
                ) from None
            if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
                raise RecordError(f"{path}: is no log of answers ({error}). Move it away and run again.") from None
            if isinstance(error, sqlite3.OperationalError):
                raise RunError(f"{path}: the log of answers cannot be used ({error}). Look at the disk.") from error
            raise


def _row(answer: Answer) -> tuple[Any, ...]:
    text = zlib.compress(answer.text.encode(), 3)
    told = (answer.prompt_tokens, answer.num_tokens, answer.spent_in, answer.spent_out)
    return (answer.key, answer.index, answer.finish, *told, answer.endpoint, answer.seconds, text)


def _answer(row: Sequence[Any]) -> Answer:
    key, sample, finish, prompt_tokens, num_tokens, spent_in, spent_out, endpoint, seconds, text = row
    said = zlib.decompress(text).decode()
    return Answer(key, sample, said, finish, prompt_tokens, num_tokens, endpoint, seconds, spent_in, spent_out)
