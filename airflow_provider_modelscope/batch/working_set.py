"""The rows of a batch and their results, in a temporary database: their number costs no memory."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from typing import IO, Any, Self

from airflow_provider_modelscope.batch.engine import Work
from airflow_provider_modelscope.batch.rows import Row
from airflow_provider_modelscope.manifest import STATUSES
from airflow_provider_modelscope.protocol.request import GenerationRequest

_TABLE = """
create table rows (
    number integer primary key, key text unique, fingerprint text, request text, data text,
    is_taken integer default 0,
    twin integer,  -- the number of the first row with the same request, if it has a seed
    status text, result text
);
create index by_fingerprint on rows (fingerprint) where twin is null;
create index by_twin on rows (twin) where twin is not null;
create index by_image on rows (json_extract(result, '$.key'));
"""


class WorkingSet:
    """The rows and their results. Close it, or use it in a ``with``.

    Rows are in the order of the input. Of equal rows with a seed only the first is worked on: its result is
    also that of the others.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)  # a temporary file, gone when it is closed
        self._database.executescript("pragma journal_mode = memory; pragma synchronous = off;" + _TABLE)
        self._last_taken = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete the database."""
        self._database.close()

    def add(self, rows: Iterable[tuple[Row, str]]) -> None:
        """Add rows with their fingerprints: all of them or, after an error, none."""
        self._database.execute("begin")
        try:
            for row, fingerprint in rows:
                twin = None
                if row.request.seed is not None:
                    first = self._database.execute(
                        "select number from rows where fingerprint = ? and twin is null", [fingerprint]
                    ).fetchone()
                    twin = first[0] if first else None
                request = {name: value for name, value in vars(row.request).items() if value is not None}
                self._database.execute(
                    "insert into rows (number, key, fingerprint, request, data, twin) "
                    "values (?, ?, ?, ?, ?, ?)",
                    [row.number, row.key, fingerprint, _dump(request), _dump(row.data), twin],
                )
        except BaseException:
            self._database.execute("rollback")
            raise
        self._database.execute("commit")

    def __len__(self) -> int:
        return int(self._one("select count(*) from rows"))

    def write_plan(self, file: IO[bytes]) -> None:
        """Write the rows, for :meth:`read_plan` in another process."""
        for number, key, fingerprint, request, data in self._database.execute(
            "select number, key, fingerprint, request, data from rows order by number"
        ):
            file.write(f"[{number}, {_dump(key)}, {_dump(fingerprint)}, {request}, {data}]\n".encode())

    def read_plan(self, file: Iterable[bytes]) -> None:
        """Add the rows that :meth:`write_plan` wrote.

        :raises ValueError: if it wrote something else.
        """
        self.add(_planned(line) for line in file)

    def take(self) -> Work | None:
        """Return the next row without a result, each once; None if there is none."""
        found = self._database.execute(
            "select number, key, fingerprint, request, data from rows where number > ? "
            "and not is_taken and status is null and twin is null order by number limit 1",
            [self._last_taken],
        ).fetchone()
        if found is None:
            return None
        self._last_taken = found[0]
        return _work(found)

    def take_row(self, key: str, fingerprint: str) -> Work | None:
        """Return this row if it has no result, and do not return it again; else None."""
        found = self._database.execute(
            "update rows set is_taken = 1 where number = ? and not is_taken and status is null "
            "returning number, key, fingerprint, request, data",
            [self._find(key, fingerprint)],
        ).fetchone()
        return _work(found) if found else None

    def give_back(self, work: Work) -> None:
        """Let :meth:`take` return a row that :meth:`take_row` has returned."""
        self._database.execute("update rows set is_taken = 0 where key = ?", [work.row.key])

    def set_result(self, key: str, fingerprint: str, result: Mapping[str, Any]) -> int:
        """Set the result of a row and of its twins. Return their number: 0 if the row has changed or is gone.

        The result of a row that is gone is that of another one with the same request and seed, unless a row
        with its key, and so with the name of its image, has another request now.
        """
        number = self._find(key, fingerprint)
        if number is None:
            return 0
        same = {**result, "credit": None if result.get("credit") is None else 0.0}
        self._database.execute(
            "update rows set status = ?, result = ? where number = ?",
            [result["status"], _dump(result), number],
        )
        twins = self._database.execute(
            "update rows set status = ?, result = ? where twin = ?", [result["status"], _dump(same), number]
        ).rowcount
        return 1 + int(twins)

    def clear_result(self, key: str, fingerprint: str) -> None:
        """Leave a row and its twins without a result."""
        number = self._find(key, fingerprint)
        self._database.execute(
            "update rows set status = null, result = null where number = ? or twin = ?", [number, number]
        )

    def clear_overwritten(self, key: str, fingerprint: str) -> None:
        """Leave rows without a result if their image was replaced by that of another request."""
        self._database.execute(
            "update rows set status = null, result = null "
            "where json_extract(result, '$.key') = ? and fingerprint != ?",
            [key, fingerprint],
        )

    def has_changed(self, key: str, fingerprint: str) -> bool:
        """Whether the row with this key has another request."""
        found = self._database.execute("select fingerprint from rows where key = ?", [key]).fetchone()
        return found is not None and found[0] != fingerprint

    def _find(self, key: str, fingerprint: str) -> int | None:
        """Return the row that is worked on for this one, by its number."""
        if found := self._database.execute(
            "select coalesce(twin, number), fingerprint from rows where key = ?", [key]
        ).fetchone():
            return found[0] if found[1] == fingerprint else None
        found = self._database.execute(
            "select number from rows "
            "where fingerprint = ? and twin is null and json_extract(request, '$.seed') is not null",
            [fingerprint],
        ).fetchone()
        return found[0] if found else None

    def counts(self) -> dict[str, int]:
        """Return how many rows have each status. Rows without a result are left out."""
        counted: Counter[str] = Counter(
            dict(
                self._database.execute(
                    "select status, count(*) from rows where status is not null group by 1"
                )
            )
        )
        return {status: counted[status] for status in STATUSES}

    def models(self) -> dict[str, int]:
        """Return how many rows without a result, and without a twin, ask each model."""
        return dict(
            self._database.execute(
                "select json_extract(request, '$.model'), count(*) from rows "
                "where status is null and twin is null group by 1"
            )
        )

    def first_failure(self) -> tuple[str, bool]:
        """Return a text about the first row without an image, and whether a retry can help any of them."""
        number, key, result = self._database.execute(
            "select number, key, result from rows where status in ('rejected', 'failed') "
            "order by number limit 1"
        ).fetchone()
        error = json.loads(result).get("error") or {"type": "an error", "message": "unknown"}
        can_retry = self._one(
            "select exists (select 1 from rows "
            "where status = 'failed' and not json_extract(result, '$.is_final'))"
        )
        return f"row {number} ({key}): {error['type']}: {error['message']}", bool(can_retry)

    def results(self) -> Iterator[tuple[Row, dict[str, Any] | None]]:
        """Yield each row with its result, None if it has none."""
        with closing(self._database.cursor()) as cursor:
            for *columns, result in cursor.execute(
                "select number, key, fingerprint, request, data, result from rows order by number"
            ):
                yield _work(columns).row, json.loads(result) if result else None

    def _one(self, query: str) -> Any:
        return self._database.execute(query).fetchone()[0]


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True)


def _work(columns: Any) -> Work:
    number, key, fingerprint, request, data = columns
    parameters = json.loads(request)
    row = Row(
        number=number,
        key=key,
        request=GenerationRequest(**parameters, check_ranges=False),  # checked already
        data=json.loads(data),
    )
    return Work(row=row, fingerprint=fingerprint)


def _planned(line: bytes) -> tuple[Row, str]:
    number, key, fingerprint, request, data = json.loads(line)
    work = _work((number, key, fingerprint, _dump(request), _dump(data)))
    return work.row, work.fingerprint
