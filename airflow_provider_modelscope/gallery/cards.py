"""What the gallery shows of a Dag run: a card for each image, and for each image that is pending or missing.

Pure functions of values. Any task may have written the XComs, so nothing in them is trusted.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from airflow_provider_modelscope import exceptions
from airflow_provider_modelscope.gallery.status import Status, places_of, status_of, usual_durations
from airflow_provider_modelscope.protocol.request import GenerationRequest
from airflow_provider_modelscope.redaction import truncated
from airflow_provider_modelscope.xcoms import (
    BATCHES,
    IMAGES,
    REQUEST,
    SUBMITTERS,
    StoredImage,
    Submission,
)

if TYPE_CHECKING:
    from airflow_provider_modelscope.gallery.run import PushedXCom, Run, TaskState
    from airflow_provider_modelscope.links import Instance
    from airflow_provider_modelscope.xcoms import AttemptError

Kind = Literal["image", "pending", "failed", "idle"]

CHUNK_SIZE = 20  # a change of one card sends so many

_AGAIN = Status(label="Being generated again", color="queued")
_UNREADABLE = Status(
    label="Not readable",
    color="failed",
    sentence="The images are in a custom XCom backend, which the gallery cannot read.",
    is_pending=False,
)


@dataclass(frozen=True, kw_only=True)
class Card:
    """One image, or the reason why there is none.

    :param number: The position of the image in its task instance's XCom ``images``, from 1.
    :param status: What happens to it, if there is no image or another will replace it.
    :param given: The parameters of its task that are known before it submits.
    :param error: Why the last attempt of its task ended, if it ended with an error of this package.
    :param row: The key of its row, if it is an image of a batch; the number is the position in that row.
    :param segment: The segment of the batch's state that describes it, if it is in one.
    """

    instance: Instance
    label: str
    number: int = 1
    row: str | None = None
    segment: str | None = None
    image: StoredImage | None = None
    submission: Submission | None = None
    status: Status | None = None
    error: AttemptError | None = None
    given: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        """What the page counts it as."""
        if self.image:
            return "image"
        if self.status and self.status.is_pending:
            return "pending"
        return "idle" if self.status and self.status.is_idle else "failed"

    @property
    def key(self) -> str:
        """Identifies the card within its run, also after its image is stored."""
        row = () if self.row is None else ("row", self.row)
        return " ".join(map(str, (*astuple(self.instance), *row, self.number)))

    def query(self, run_id: str) -> str:
        """Return the query that names its image."""
        row = {"row": self.row, "segment": self.segment}
        others = {name: value for name, value in row.items() if value is not None}
        return self.instance.query(run_id, number=self.number, **others)

    @property
    def caption(self) -> str:
        """What tells the card apart from the others of its section."""
        if self.row is not None:
            return self.row
        return self.instance_name or f"Image {self.number}"

    @property
    def instance_name(self) -> str:
        """The label or index in a mapped task or a loop; otherwise empty."""
        index = self.instance.map_index
        if index < 0:
            return ""
        # Airflow's default label is the index itself.
        return self.label if self.label not in ("", str(index)) else f"[{index}]"

    @property
    def place(self) -> str:
        """The task, with the label or index of a mapped one, and the row of a batch."""
        return " ".join(filter(None, (self.instance.task_id, self.instance_name, self.row)))

    @property
    def documented_error(self) -> str:
        """The name of the error if it is one of this package; anybody can write any other name."""
        kind = getattr(exceptions, self.error.type, None) if self.error else None
        is_ours = isinstance(kind, type) and issubclass(kind, exceptions.ModelScopeError)
        return kind.__name__ if kind and is_ours else ""

    @property
    def error_text(self) -> str:
        """The whole error, to copy."""
        return f"{self.place}: {self.error.type}: {self.error.message}" if self.error else ""

    @property
    def generation_id(self) -> str | None:
        """The generation that made the image, or is expected to."""
        source = self.image or self.submission
        return source.generation_id if source else None

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The parameters of the request."""
        if self.image:
            return self.image.parameters
        return self.submission.request if self.submission else self.given

    @property
    def prompt(self) -> str:
        """The prompt, or an empty text."""
        return str(self.parameters.get("prompt") or "")

    @property
    def model(self) -> str:
        """The model, or an empty text."""
        return str(self.parameters.get("model") or (self.image and self.image.model) or "")

    @property
    def size(self) -> str:
        """The size in pixels, or an empty text."""
        image = self.image
        if image and image.width and image.height:
            return f"{image.width} × {image.height}"
        return str(self.parameters.get("size") or "").replace("x", " × ")

    @property
    def seed(self) -> str:
        """The seed, or an empty text."""
        seed = self.parameters.get("seed")
        return "" if seed is None else str(seed)

    @property
    def model_name(self) -> str:
        """The model without its owner."""
        return self.model.rpartition("/")[2]

    @property
    def facts(self) -> list[str]:
        """The size and the seed, as far as they are known."""
        return list(filter(None, (self.size, f"seed {self.seed}" if self.seed else "")))

    @property
    def alternative_text(self) -> str:
        """The image's text for screen readers."""
        return f"Image of: {truncated(self.prompt, 300)}" if self.prompt else "Image of an unknown prompt"

    @property
    def file_name(self) -> str:
        """The name under which the image is downloaded."""
        return self.image.uri.rpartition("/")[2] if self.image else ""

    @property
    def details(self) -> list[tuple[str, str]]:
        """Labels and values of what a stored image shows and how it was asked for."""
        if self.image is None:
            return []
        image, parameters = self.image, self.parameters
        details = {
            "Prompt": self.prompt,
            "Negative prompt": parameters.get("negative_prompt"),
            "Model": self.model,
            "Model asked first": image.asked_model,
            "Size": self.size,
            "Seed": self.seed,
            "Steps": parameters.get("steps"),
            "Guidance": parameters.get("guidance"),
            "LoRAs": parameters.get("loras"),
            "Source image": parameters.get("image_url"),
            "Duration": None if image.duration_ms is None else f"{image.duration_ms / 1000:.1f} s",
            "Credit": None if image.credit is None else f"{image.credit:g}",
        }
        return _known(details)

    @property
    def technical_details(self) -> list[tuple[str, str]]:
        """Labels and values of where a stored image is, and what identifies it."""
        if self.image is None:
            return []
        image = self.image
        details = {
            "URI": image.uri,
            "Sidecar": image.sidecar_uri,
            "Bytes": f"{image.size_bytes:,}",
            "SHA-256": image.sha256,
            "Generation ID": image.generation_id,
        }
        return _known(details)

    @property
    def arguments(self) -> str:
        """The request as arguments of an operator. The same model, prompt and seed make the same image."""
        names = [field.name for field in fields(GenerationRequest)]
        given = {name: self.parameters.get(name) for name in names}
        return "\n".join(f"{name}={value!r}," for name, value in given.items() if value is not None)


def _known(details: Mapping[str, object]) -> list[tuple[str, str]]:
    return [(label, str(value)) for label, value in details.items() if value not in (None, "")]


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some neighbouring cards or rows, which a page that has them already need not get again.

    :param version: Tells them apart from all others, and changes when one of them changes.
    """

    version: str
    cards: Sequence[object]


def chunks_of(cards: Sequence[object]) -> list[Chunk]:
    """Return cards or rows in chunks."""
    return [
        Chunk(version=hashlib.sha256(repr(some).encode()).hexdigest()[:12], cards=some)
        for some in (cards[start : start + CHUNK_SIZE] for start in range(0, len(cards), CHUNK_SIZE))
    ]


def cards_of(run: Run, *, only: Instance | None = None, now: float) -> dict[str, list[Card]]:
    """Return the cards of a run by task, in the order in which the tasks started.

    :param only: Return only the images that this task instance, or those that it includes, stored or
        submitted.
    :param now: In epoch seconds.
    """
    cards = list(_cards(run, now))
    if only is not None:
        submissions = [
            Submission.from_json(xcom.value)
            for xcom in run.xcoms
            if only.includes(xcom.instance) and xcom.key == REQUEST
        ]
        submitted = {submission.generation_id for submission in submissions if submission}
        cards = [c for c in cards if only.includes(c.instance) or c.generation_id in submitted]
    started: dict[str, float] = defaultdict(lambda: math.inf)
    for task in run.tasks:
        if task.started_at is not None:
            task_id = task.instance.task_id
            started[task_id] = min(started[task_id], task.started_at)
    cards.sort(key=lambda card: (started[card.instance.task_id], card.instance, card.number))
    groups: dict[str, list[Card]] = defaultdict(list)
    for card in _without_moved(cards):
        groups[card.instance.task_id].append(card)
    return dict(groups)


def _without_moved(cards: Sequence[Card]) -> list[Card]:
    """Leave out images that a later task reports again, as a task that moves them does."""
    last = {identity(card.image): card for card in cards if card.image}
    return [card for card in cards if not card.image or last[identity(card.image)] is card]


def identity(image: StoredImage) -> tuple[str | None, str]:
    """Return what an image has in common with the same image elsewhere."""
    return image.generation_id, image.sha256


def _cards(run: Run, now: float) -> Iterator[Card]:
    tasks = {task.instance: task for task in run.tasks}
    stored: set[str | None] = set()  # the generations that have an image
    shown: set[Instance] = set()  # the task instances that have a card
    images: list[StoredImage] = []

    def card(of: PushedXCom | TaskState, **known: Any) -> Card:
        task = tasks.get(of.instance)
        shown.add(of.instance)
        return Card(instance=of.instance, label=task.label if task else "", **known)

    for xcom in run.xcoms:
        if xcom.key != IMAGES:
            continue
        if isinstance(xcom.value, str):
            yield card(xcom, status=_UNREADABLE)
        if not isinstance(xcom.value, list):
            continue
        again = _AGAIN if run.will_clear(tasks.get(xcom.instance)) else None
        for number, entry in enumerate(xcom.value, start=1):
            if image := StoredImage.from_json(entry):
                stored.add(image.generation_id)
                images.append(image)
                yield card(xcom, number=number, image=image, status=again)
    recent = (StoredImage.from_json(entry) for value in run.recent_images for entry in value)
    usual = usual_durations(filter(None, recent)) | usual_durations(images)
    status = partial(status_of, run=run, usual=usual, places=places_of(run.queue), now=now)

    def without_image(of: PushedXCom | TaskState, submission: Submission | None = None) -> Card:
        task, error = tasks.get(of.instance), run.errors.get(of.instance)
        given = {"prompt": task.prompt, "model": task.model} if task else {}
        found = status(task, submission, error)
        return card(of, submission=submission, status=found, error=error, given=given)

    for xcom in run.xcoms:
        submission = Submission.from_json(xcom.value) if xcom.key == REQUEST else None
        if submission and submission.generation_id in stored:
            shown.add(xcom.instance)
        elif submission:
            yield without_image(xcom, submission)
    for task in run.tasks:
        # A task that waits for a generation or stores its images has a card of its own only if it failed.
        has_failed = task.state == "failed" and task.instance in run.errors and task.operator not in BATCHES
        is_expected = task.operator in SUBMITTERS and task.state != "removed"
        if (is_expected or has_failed) and task.instance not in shown:
            yield without_image(task)
