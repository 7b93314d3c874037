"""What the gallery shows of all runs of a Dag: one page of its stored images, the newest first.

Pure functions of values and of two functions that read. A position is a place between two images, so a page
keeps its images while newer ones are stored.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_modelscope.gallery.batch_state import StateUnavailableError, location_of
from airflow_provider_modelscope.gallery.batches import read_page
from airflow_provider_modelscope.gallery.cards import Card, identity
from airflow_provider_modelscope.protocol.request import GenerationRequest
from airflow_provider_modelscope.xcoms import BATCH, StoredImage

if TYPE_CHECKING:
    from datetime import datetime

    from airflow_provider_modelscope.links import Instance

PAGE_SIZE = 60  # images
MAX_COST = 5000  # of the XComs and runs that are read for one page, each of which costs 1
BATCH_COST = 250  # of a page of a batch, whose state is in object storage
MAX_TRAIL = 50  # newer pages that a page leads back to, one by one
MAX_MODELS = 100  # that are suggested
MAX_PROBLEMS = 3  # that are shown
_FIRST_RUNS, _MAX_RUNS = 10, 1000  # that are read at once
_FEW = 100  # XComs; if so few are found, more runs are read at once

_NEWEST = (2**31 - 1, 10**16 - 1)  # no run has a larger id, no XCom a later time
_POSITION = re.compile(r"([0-9]{1,10})-([0-9]{1,16})-([0-9]{1,6})-([0-9]{1,9})")


@dataclass(frozen=True, kw_only=True)
class Position:
    """A place in the images of a Dag, from the newest to the oldest.

    :param run: The id of the run in the database.
    :param pushed_at: When the next XCom was pushed, in microseconds since the epoch.
    :param skipped: How many XComs of this time come before it.
    :param left: How many of its images are left; 0 for all.
    """

    run: int = _NEWEST[0]
    pushed_at: int = _NEWEST[1]
    skipped: int = 0
    left: int = 0

    def __str__(self) -> str:
        return f"{self.run}-{self.pushed_at}-{self.skipped}-{self.left}"

    @classmethod
    def from_text(cls, text: str) -> Self | None:
        """Return the position that a text names, or None if it names none."""
        found = _POSITION.fullmatch(text)
        if found is None or int(found[1]) > _NEWEST[0]:
            return None
        run, pushed_at, skipped, left = map(int, found.groups())
        return cls(run=run, pushed_at=pushed_at, skipped=skipped, left=left)


def trail_of(text: str) -> list[Position]:
    """Return the positions of a page and of those through which the user came, in the order of the visits."""
    found = [Position.from_text(one) for one in text.split(".")[-MAX_TRAIL:]]
    return [position for position in found if position]


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A run of the Dag.

    :param started_at: The time after which it could run.
    """

    run_id: str
    started_at: datetime

    @property
    def date(self) -> str:
        """The time for people."""
        return f"{self.started_at:%Y-%m-%d %H:%M}"


@dataclass(frozen=True, kw_only=True)
class DagXCom:
    """An XCom ``images`` or ``batch`` of any run of the Dag."""

    run: RunFacts
    instance: Instance
    key: str
    value: Any
    position: Position


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was read of some runs, the newest first.

    :param runs: How many runs were read.
    :param older: Where to go on; None if there is nothing older.
    """

    xcoms: Sequence[DagXCom]
    runs: int
    older: Position | None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the user asks for. Empty texts ask for nothing.

    :param run: The id of a run.
    :param task: The id of a task.
    :param model: A part of the model's name.
    :param prompt: A part of the prompt.
    """

    run: str = ""
    task: str = ""
    model: str = ""
    prompt: str = ""
    seed: str = ""

    @property
    def given(self) -> dict[str, str]:
        """What is asked for, by the name of the field."""
        return {name: value for name, value in vars(self).items() if value}

    def includes(self, card: Card) -> bool:
        """Whether an image is asked for, apart from its run and task."""
        return (
            _plain(self.model) in _plain(card.model)
            and _plain(self.prompt) in _plain(card.prompt)
            and self.seed in ("", card.seed)
        )


def _plain(text: str) -> str:
    """Return a text for comparisons, without differences in case, width and spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@dataclass(frozen=True, kw_only=True)
class DagCard(Card):
    """One image of any run."""

    run: RunFacts

    @property
    def key(self) -> str:
        """Identifies the card within its Dag."""
        return f"{self.run.run_id} {super().key}"

    def conf(self, params: Iterable[str]) -> str:
        """Return the parameters of the image that the Dag has too, as JSON for a new run; "" for none."""
        names = {field.name for field in fields(GenerationRequest)}.intersection(params)
        given = {name: value for name in sorted(names) if (value := self.parameters.get(name)) is not None}
        if "..." in str(given.get("image_url", "")):  # its query or its bytes are not kept
            del given["image_url"]
        return json.dumps(given, ensure_ascii=False) if given else ""


@dataclass(frozen=True, kw_only=True)
class ImagePage:
    """A page of images.

    :param older: Where the next page begins; None if there is nothing older.
    :param is_complete: Whether all images between the newest and the oldest of the page were searched, and if
        the page is not full, all older ones too.
    :param searched_to: The oldest run that was searched.
    :param models: The models of all images that were read.
    :param problems: Why images are missing.
    """

    cards: Sequence[DagCard]
    older: Position | None
    is_complete: bool
    searched_to: RunFacts | None
    models: Sequence[str]
    problems: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Some images of an XCom, each with how many were left before it.

    :param left: How many are left after them; 0 for none.
    """

    cards: Sequence[tuple[int, DagCard]] = ()
    left: int = 0
    cost: int = 1
    problem: str = ""


def find_images(
    read: Callable[[Position, int], Found],
    wanted: Wanted,
    start: Position,
    *,
    dag_id: str,
    shown: Iterable[StoredImage] = (),
) -> ImagePage:
    """Return the images after a position that the user asks for.

    :param read: Reads XComs from a position on, of at most so many runs.
    :param shown: Newer images, which are not shown again if an older task reported them too.
    """
    found: list[tuple[Position, DagCard]] = []
    seen = set(map(identity, shown))
    models: set[str] = set()
    problems: set[str] = set()
    searched_to: RunFacts | None = None
    position: Position | None = start
    runs, cost = _FIRST_RUNS, 0

    def page(older: Position | None = None, *, is_complete: bool = True) -> ImagePage:
        return ImagePage(
            cards=[card for _, card in found[:PAGE_SIZE]],
            older=older,
            is_complete=is_complete,
            searched_to=searched_to,
            models=sorted(models - {""})[:MAX_MODELS],
            problems=sorted(problems)[:MAX_PROBLEMS],
        )

    while position:
        chunk = read(position, runs)
        cost += chunk.runs
        if len(chunk.xcoms) < _FEW:
            runs = min(4 * runs, _MAX_RUNS)
        for xcom in chunk.xcoms:
            searched_to = xcom.run
            left = position.left if xcom.position == replace(position, left=0) else 0
            while True:
                if cost >= MAX_COST:
                    return page(replace(xcom.position, left=left), is_complete=False)
                part = _read_batch(xcom, left, dag_id) if xcom.key == BATCH else _images_of(xcom)
                cost += part.cost
                problems |= {part.problem} - {""}
                for before, card in part.cards:
                    models.add(card.model)
                    if not card.image or identity(card.image) in seen or not wanted.includes(card):
                        continue
                    seen.add(identity(card.image))
                    if left and before > left:  # on a newer page
                        continue
                    found.append((replace(xcom.position, left=before), card))
                    if len(found) > PAGE_SIZE:
                        return page(found[-1][0])
                if not part.left:
                    break
                left = part.left
        position = chunk.older
        if position and cost >= MAX_COST:
            return page(position, is_complete=False)
    return page()


def _images_of(xcom: DagXCom) -> _Part:
    """Return all images of an XCom."""
    if isinstance(xcom.value, str):
        return _Part(problem="Images in a custom XCom backend, which the gallery cannot read, are missing.")
    pushed = xcom.value if isinstance(xcom.value, list) else []
    total = len(pushed)
    card = DagCard(instance=xcom.instance, label="", run=xcom.run)
    return _Part(
        cards=[
            (total - index, replace(card, number=index + 1, image=image))
            for index, entry in enumerate(pushed)
            if (image := StoredImage.from_json(entry))
        ]
    )


def _read_batch(xcom: DagXCom, left: int, dag_id: str) -> _Part:
    """Return a page of the images of a batch. Rows are counted from the oldest."""
    location = location_of(xcom.value, dag_id, xcom.run.run_id, xcom.instance)
    if location is None:
        return _Part()
    try:
        page = read_page(location, up_to=left)
    except StateUnavailableError as error:
        return _Part(cost=BATCH_COST, problem=str(error))
    last = page.total - page.first + 1
    cards = []
    for index, (result, segment) in enumerate(page.rows):
        card = DagCard(
            instance=xcom.instance,
            label="",
            run=xcom.run,
            row=result.key,
            segment=segment.name if segment else None,
        )
        for number, image in enumerate(result.images, start=1):
            cards.append((last - index, replace(card, number=number, image=image)))
    return _Part(cards=cards, left=page.older or 0, cost=BATCH_COST)
