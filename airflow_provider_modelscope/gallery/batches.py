"""What the gallery shows of a batch: a bar, its running rows, and a page of its images or of its failed rows.

Rows are counted from the oldest on, so a page keeps its rows while newer ones finish.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from airflow_provider_modelscope.gallery.batch_state import (
    StateUnavailableError,
    describe_state,
    list_segments,
    location_of,
    read_keys,
    read_progress,
    read_segment,
)
from airflow_provider_modelscope.gallery.cards import Card
from airflow_provider_modelscope.gallery.status import Status, first_sentence, places_of, status_of
from airflow_provider_modelscope.xcoms import BATCH, BATCHES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_modelscope.gallery.run import PushedXCom, Run, TaskState
    from airflow_provider_modelscope.links import Instance
    from airflow_provider_modelscope.manifest import Progress, Result, RunningRow, Segment
    from airflow_provider_modelscope.xcoms import AttemptError, BatchLocation

PAGE_SIZE = 100  # rows
MAX_BATCHES = 20  # whose state is read for one page
THREADS = 4  # that read states for one page, or segments for one of them

View = Literal["images", "failed"]

_WORKING = ("running", "deferred")  # states of a task
_ENDED = ("success", "failed", "upstream_failed", "skipped")
_STOPPED = {
    "credit": "Stopped: the credit of the account is used up",
    "max_credit": "Stopped: the next row would exceed max_credit",
}


@dataclass(frozen=True, kw_only=True)
class FailedRow:
    """A row without an image."""

    result: Result

    @property
    def message(self) -> str:
        """The whole reason."""
        return self.result.error.message if self.result.error else "The reason is not known."

    @property
    def reason(self) -> str:
        """The first sentence of the reason."""
        return first_sentence(self.message)


@dataclass(frozen=True, kw_only=True)
class Page:
    """Some rows of a batch, the newest first.

    :param first: The position of the first of them, counted from the newest.
    :param total: How many there are on all pages.
    :param newer: Up to which row the page of newer ones goes; 0 for all; None if there is none.
    :param older: Up to which row the page of older ones goes; None if there is none.
    """

    rows: Sequence[tuple[Result, Segment | None]] = ()
    first: int = 0
    total: int = 0
    newer: int | None = None
    older: int | None = None

    @property
    def last(self) -> int:
        """The position of the last row, counted from the newest."""
        return self.first + len(self.rows) - 1


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One task instance that generates a batch.

    :param is_alone: Whether the page shows nothing else, so that it can be turned.
    :param waiting: What happens to the task if it neither runs nor has ended.
    :param error: Why its last attempt ended, if it ended with an error of this package.
    :param problem: Why its state is not shown.
    """

    task: TaskState
    location: BatchLocation | None
    view: View
    is_alone: bool
    waiting: Status | None = None
    error: AttemptError | None = None
    progress: Progress | None = None
    page: Page = Page()
    problem: str = ""

    @property
    def key(self) -> str:
        """Identifies the batch within its run."""
        return " ".join(map(str, (*astuple(self.task.instance), "batch")))

    @property
    def title(self) -> str:
        """The task, with the label or index of a mapped one."""
        return self._card().place

    @property
    def is_working(self) -> bool:
        """Whether rows may finish now."""
        return self.task.state in _WORKING

    @property
    def status(self) -> str:
        """Why it shows less than it could, or why the task ended, as a sentence."""
        if self.problem:
            return self.problem
        stopped = _STOPPED.get(self.stopped_by, f"Stopped by {self.stopped_by}") if self.stopped_by else ""
        match self.task.state:
            case "running":
                return "" if self.progress else "Starting."
            case "upstream_failed":
                return "Not started: an upstream task failed."
            case "skipped":
                return "The task was skipped."
            case "failed" if not stopped:
                return first_sentence(self.error.message) if self.error else "The task failed. See its log."
            case "success" | "failed" if stopped:
                skipped = self.counts("skipped")
                rest = f" {_rows(skipped)} left. Clear the task to go on." if skipped else ""
                return f"{stopped}.{rest}"
            case "success" if not self.progress:
                return "The task succeeded and generated nothing, as in a dry run."
        return ""

    @property
    def stopped_by(self) -> str:
        """What ended the batch before its last row, or an empty text."""
        return (self.progress and self.progress.stopped_by) or ""

    def counts(self, *statuses: str) -> int:
        """Return how many rows have one of these statuses."""
        return sum(self.progress.counts[status] for status in statuses) if self.progress else 0

    @property
    def stored(self) -> int:
        """How many rows have an image."""
        return self.counts("stored")

    @property
    def failed(self) -> int:
        """How many rows failed or were rejected."""
        return self.counts("failed", "rejected")

    @property
    def total(self) -> int:
        """How many rows there are."""
        known = self.progress or self.location
        return known.total if known else 0

    @property
    def summary(self) -> str:
        """The counts, as the bar shows them."""
        parts = [f"{self.stored:,} of {_rows(self.total)} stored"]
        for status in ("failed", "rejected", "skipped"):
            if count := self.counts(status):
                parts.append(f"{count:,} {status}")
        if left := max(0, self.total - self.stored - self.failed - self.counts("skipped")):
            parts.append(f"{left:,} left")
        return ", ".join(parts)

    @property
    def pace(self) -> str:
        """The rate and the time left, or an empty text."""
        is_held = self.waiting and self.waiting.color not in ("running", "deferred")  # no credit, for example
        rate = self.progress.per_minute if self.progress and self.is_working else None
        if not rate or is_held:
            return ""
        left = self.total - self.stored - self.failed
        return f"{rate:.3g} a minute" + (f", about {_duration(60 * left / rate)} left" if left > 0 else "")

    @property
    def bar(self) -> Iterator[tuple[str, float, float]]:
        """The parts of the bar: their kind, start and width in percent. A part of few rows is visible too."""
        start = 0.0
        for kind, count in (("stored", self.stored), ("failed", self.failed)):
            if count and self.total:
                width = min(max(100 * count / self.total, 0.5), 100 - start)
                yield kind, round(start, 2), round(width, 2)
                start += width

    @property
    def running(self) -> list[tuple[RunningRow, str]]:
        """The rows that the account works on, each with what happens to it. The page adds the time since."""
        rows = self.progress.running if self.progress and self.is_working else ()
        return [(row, _activity(row)) for row in rows[:20]]

    @property
    def cards(self) -> list[Card]:
        """The images of the page."""
        return [
            replace(
                self._card(),
                number=number,
                image=image,
                row=result.key,
                segment=segment.name if segment else None,
            )
            for result, segment in self.page.rows
            for number, image in enumerate(result.images, start=1)
        ]

    @property
    def failed_rows(self) -> list[FailedRow]:
        """The failed rows of the page."""
        return [FailedRow(result=result) for result, _ in self.page.rows]

    def _card(self) -> Card:
        return Card(instance=self.task.instance, label=self.task.label)


def batches_of(
    run: Run, *, only: Instance | None = None, view: View = "images", up_to: int = 0, now: float
) -> list[Batch]:
    """Return the batches of a run in the order in which their tasks started, with one page of each.

    :param only: Return only those of this task instance, or of those that it includes.
    :param view: What the page shows.
    :param up_to: The last row of the page, counted from the oldest; 0 shows the newest. It counts only if the
        page shows a single batch, and so does the view.
    :param now: In epoch seconds.
    """
    pushed = [xcom for xcom in run.xcoms if xcom.key == BATCH]
    locations = _locations(run.dag_id, run.run_id, pushed, only)
    problems = dict.fromkeys(
        (xcom.instance for xcom in pushed), "The XCom batch names no state of this task."
    )
    for number, instance in enumerate(locations):
        problems[instance] = "" if number < MAX_BATCHES else "Open this batch to see its state."
    tasks = [
        task
        for task in run.tasks
        if (task.instance in locations or task.operator in BATCHES)
        and task.state != "removed"
        and (only is None or only.includes(task.instance))
    ]
    tasks.sort(key=lambda task: (task.started_at is None, task.started_at or 0, task.instance))
    is_alone = only is not None and len(tasks) == 1
    places = places_of(run.queue)

    def read(task: TaskState) -> Batch:
        error = run.errors.get(task.instance)
        is_waiting = task.state not in (*_ENDED, "running")
        waiting = status_of(task, None, error, run, usual={}, places=places, now=now) if is_waiting else None
        batch = Batch(
            task=task,
            location=locations.get(task.instance),
            view=view if is_alone else "images",
            is_alone=is_alone,
            waiting=waiting,
            error=error,
            problem=problems.get(task.instance, ""),
        )
        return _read(batch, up_to=up_to if is_alone else 0)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(read, tasks))


def versions_of(
    dag_id: str, run_id: str, xcoms: Sequence[PushedXCom], only: Instance | None = None
) -> list[str]:
    """Return texts that change when the state of a batch does, without reading it.

    :param xcoms: Those of the batches of a run.
    :param only: Return only those that the page of this task instance shows.
    """
    locations = list(_locations(dag_id, run_id, xcoms, only).values())[:MAX_BATCHES]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(describe_state, locations))


def _locations(
    dag_id: str, run_id: str, xcoms: Sequence[PushedXCom], only: Instance | None
) -> Mapping[Instance, BatchLocation]:
    """Return where the batches of one page keep their states. The page reads the first of them."""
    found = {
        xcom.instance: location
        for xcom in xcoms
        if only is None or only.includes(xcom.instance)
        if (location := location_of(xcom.value, dag_id, run_id, xcom.instance))
    }
    return dict(sorted(found.items()))


def _activity(row: RunningRow) -> str:
    if row.generation_id is None:
        return "being submitted"
    attempt = f", attempt {row.attempts}" if row.attempts and row.attempts > 1 else ""
    return f"generation {row.generation_id}{attempt}"


def _read(batch: Batch, *, up_to: int) -> Batch:
    """Return a batch with its progress and a page of its rows."""
    location = batch.location
    if location is None or batch.problem:
        return batch
    try:
        progress = read_progress(location)
    except StateUnavailableError as error:
        return replace(batch, problem=str(error))
    if progress is None:
        is_over = batch.task.state in ("success", "failed")
        problem = f"The state of this batch cannot be read: {location.state}" if is_over else ""
        return replace(batch, problem=problem)
    segments = list_segments(location)  # after the progress, or results could be in neither
    page = _page(location, progress, segments, is_stored=batch.view == "images", up_to=up_to)
    return replace(batch, progress=progress, page=page)


def read_page(location: BatchLocation, *, up_to: int = 0) -> Page:
    """Return a page of the images of a batch, without its bar.

    :param up_to: The last row of the page, counted from the oldest; 0 for the newest.
    :raises StateUnavailableError: if this process cannot open its store.
    """
    progress = read_progress(location)
    if progress is None:
        return Page()
    return _page(location, progress, list_segments(location), is_stored=True, up_to=up_to)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The rows of a page's kind in one segment, or in ``running.json``, the oldest first."""

    count: int
    rows: Callable[[], Sequence[Result]]
    segment: Segment | None = None


def _page(
    location: BatchLocation, progress: Progress, segments: list[Segment], *, is_stored: bool, up_to: int
) -> Page:
    """Return a page of the rows that are stored, or of those that are not."""

    def matches(result: Result) -> bool:
        return (result.status == "stored") is is_stored

    def count_of(segment: Segment) -> int:
        return segment.count - segment.without_image if is_stored else segment.without_image

    def rows_of(segment: Segment) -> Sequence[Result]:
        return list(filter(matches, read_segment(location, segment)))

    latest = list(progress.results)
    if segments and latest:  # a segment may have been written since
        written = {(result.key, result.finished_at) for result in read_segment(location, segments[-1])}
        latest = [result for result in latest if (result.key, result.finished_at) not in written]
    counts = progress.counts
    expected = counts["stored"] if is_stored else counts["failed"] + counts["rejected"]
    found = sum(map(count_of, segments)) + sum(map(matches, latest))
    if found > expected:  # rows were done again
        return _turned(_parts_without_repeated(location, segments, latest, is_stored=is_stored), up_to=up_to)
    parts = [
        _Part(count=count_of(segment), rows=partial(rows_of, segment), segment=segment)
        for segment in segments
    ]
    matching = list(filter(matches, latest))
    return _turned([*parts, _Part(count=len(matching), rows=lambda: matching)], up_to=up_to)


def _parts_without_repeated(
    location: BatchLocation, segments: list[Segment], latest: Sequence[Result], *, is_stored: bool
) -> list[_Part]:
    """Return the parts of a batch whose rows were done again, with the last result of each row only."""
    keys = [*read_keys(location, segments), tuple((one.key, one.status == "stored") for one in latest)]
    last = {
        key: (part, position)
        for part, of_part in enumerate(keys)
        for position, (key, _) in enumerate(of_part)
    }

    def part_of(number: int, segment: Segment | None) -> _Part:
        positions = [
            position
            for position, (key, has_image) in enumerate(keys[number])
            if last[key] == (number, position) and has_image is is_stored
        ]

        def rows() -> list[Result]:
            results = latest if segment is None else read_segment(location, segment)
            return [results[position] for position in positions if position < len(results)]

        return _Part(count=len(positions), rows=rows, segment=segment)

    return [part_of(number, segment) for number, segment in enumerate([*segments, None])]


def _turned(parts: Sequence[_Part], *, up_to: int) -> Page:
    """Return the page that ends with a row. Only its parts are read."""
    total = sum(part.count for part in parts)
    end = up_to if 0 < up_to < total else total
    start = max(0, end - PAGE_SIZE)
    shown: list[tuple[_Part, slice]] = []
    position = 0
    for part in parts:
        if part.count and position < end and position + part.count > start:
            shown.append((part, slice(max(0, start - position), end - position)))
        position += part.count
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda one: [(row, one[0].segment) for row in one[0].rows()[one[1]]], shown))
    rows = [row for of_part in reversed(found) for row in reversed(of_part)]
    newer = None if end == total else 0 if end + PAGE_SIZE >= total else end + PAGE_SIZE
    return Page(
        rows=rows,
        first=total - end + 1,
        total=total,
        newer=newer,
        older=start if start > 0 else None,
    )


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"


def _duration(seconds: float) -> str:
    """Return a duration in its largest unit."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
