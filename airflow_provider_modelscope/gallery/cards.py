"""What the gallery shows of a Dag run: a card for each image, and for each that is still to come.

Pure: what is known comes in as values, and any task may have written them.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from airflow_provider_modelscope.protocol.request import GenerationRequest
from airflow_provider_modelscope.redaction import truncated
from airflow_provider_modelscope.xcoms import IMAGES, REQUEST

# The tasks that submit, by the name that Airflow keeps of their class.
SUBMITTERS = (
    "ModelScopeSubmitImageGenerationOperator",
    "ModelScopeImageGenerationOperator",
    "_ModelScopeImageDecoratedOperator",
)
_OVER = ("success", "failed")  # states of a run


@dataclass(frozen=True, kw_only=True)
class PushedXCom:
    """What a task instance pushed."""

    task_id: str
    map_index: int
    key: str
    value: Any


@dataclass(frozen=True, kw_only=True)
class TaskState:
    """How far a task instance is.

    :param operator: The name of its class.
    :param label: Its name among those that its task is mapped to, where it has one.
    :param started_at: When, in epoch seconds.
    """

    task_id: str
    map_index: int
    state: str | None
    operator: str = ""
    label: str = ""
    started_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """A Dag run, with the XComs ``images`` and ``request`` of its tasks."""

    dag_id: str
    run_id: str
    state: str
    pushed: Sequence[PushedXCom]
    tasks: Sequence[TaskState]

    @property
    def is_over(self) -> bool:
        """Whether nothing will change any more, unless somebody clears it."""
        return self.state in _OVER


@dataclass(frozen=True, kw_only=True)
class StoredPicture:
    """An entry of the XCom ``images`` that names an image which can be shown."""

    uri: str
    storage_conn_id: str | None
    sha256: str
    length: int

    @classmethod
    def of(cls, images: Any, number: int) -> Self | None:
        """Return one of the images that an XCom tells of, from 1; None where it tells of no such one."""
        entry = images[number - 1] if isinstance(images, list) and 0 < number <= len(images) else None
        match entry:
            case {"uri": str(uri), "sha256": str(sha256), "size_bytes": int(length), **others}:
                connection = others.get("storage_conn_id")
                if isinstance(connection, str | None) and re.fullmatch("[0-9a-f]{64}", sha256):
                    return cls(uri=uri, storage_conn_id=connection, sha256=sha256, length=length)
        return None


@dataclass(frozen=True, kw_only=True)
class Card:
    """One image, or what is known of one that is not there.

    :param number: Which of the task instance's images it is, from 1; None where it is none yet.
    :param sentence: Why there is no image.
    :param is_over: Whether there will be none.
    :param facts: What is known of it: the entry of the XCom ``images``, or the XCom ``request``.
    """

    task_id: str
    map_index: int
    label: str
    number: int | None = None
    sentence: str = ""
    is_over: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What tells it from the others of its run, and stays the same when its image comes."""
        return f"{self.task_id} {self.map_index} {self.number or 1}"

    @property
    def identity(self) -> tuple[Any, ...]:
        """What tells the image from others, wherever it lies."""
        return self.facts.get("generation_id"), self.facts.get("sha256")

    @property
    def which(self) -> str:
        """Which of a mapped task's instances it belongs to; empty for another task's."""
        if self.map_index < 0:
            return ""
        # Airflow's own name for an instance is its index, where the Dag has given none.
        return self.label if self.label not in ("", str(self.map_index)) else f"[{self.map_index}]"

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The parameters of the request."""
        given = self.facts.get("parameters") if self.number else self.facts
        return given if isinstance(given, Mapping) else {}

    @property
    def prompt(self) -> str:
        """What was asked for."""
        return str(self.parameters.get("prompt") or "")

    @property
    def seed(self) -> str:
        """The seed that was used, or asked for."""
        seed = self.parameters.get("seed")
        return "" if seed is None else str(seed)

    @property
    def alternative_text(self) -> str:
        """What the image shows, for those who do not see it."""
        return f"Image of: {truncated(self.prompt, 300)}" if self.prompt else "Image of an unknown prompt"

    @property
    def details(self) -> list[tuple[str, str]]:
        """What there is to tell of it, as pairs of a word and a text."""
        facts, asked = self.facts, self.parameters
        size = f"{facts.get('width')} x {facts.get('height')}" if self.number else asked.get("size")
        told = {
            "Prompt": self.prompt,
            "Negative prompt": asked.get("negative_prompt"),
            "Model": asked.get("model") or facts.get("model"),
            "Size": size,
            "Seed": self.seed,
            "Steps": asked.get("steps"),
            "Guidance": asked.get("guidance"),
            "LoRAs": asked.get("loras"),
            "Edited from": asked.get("image_url"),
            "Time taken": _seconds(facts.get("duration_ms")),
            "Stored as": facts.get("uri"),
            "Told in": facts.get("sidecar_uri"),
            "Generation": facts.get("generation_id"),
            "SHA-256": facts.get("sha256"),
        }
        return [(word, str(value)) for word, value in told.items() if value not in (None, "")]

    @property
    def arguments(self) -> str:
        """The request as arguments of an operator: the same model, prompt and seed make the same picture."""
        names = [one.name for one in fields(GenerationRequest)]
        asked = {name: self.parameters.get(name) for name in names}
        return "\n".join(f"{name}={value!r}," for name, value in asked.items() if value is not None)


def _seconds(milliseconds: Any) -> str | None:
    is_a_time = isinstance(milliseconds, int | float) and 0 <= milliseconds < 10**9
    return f"{milliseconds / 1000:.1f} s" if is_a_time else None


def cards_of(run: Run, *, task_id: str | None = None, map_index: int = -1) -> dict[str, list[Card]]:
    """Return the cards of a run, by task and in the order in which the tasks started.

    :param task_id: Only those of this task instance: that it stored, or submitted for others to store.
    :param map_index: Which of its instances.
    """
    cards = list(_cards(run))
    if task_id is not None:
        submitted = {
            _generation_id(xcom.value)
            for xcom in run.pushed
            if (xcom.task_id, xcom.map_index) == (task_id, map_index) and xcom.key == REQUEST
        } - {None}
        cards = [
            card
            for card in cards
            if (card.task_id, card.map_index) == (task_id, map_index)
            or card.facts.get("generation_id") in submitted
        ]
    started: dict[str, float] = defaultdict(lambda: math.inf)
    for task in run.tasks:
        if task.started_at is not None:
            started[task.task_id] = min(started[task.task_id], task.started_at)
    cards.sort(key=lambda card: (started[card.task_id], card.task_id, card.map_index, card.number or 1))
    groups: dict[str, list[Card]] = defaultdict(list)
    for card in _without_earlier_places(cards):
        groups[card.task_id].append(card)
    return dict(groups)


def _without_earlier_places(cards: Sequence[Card]) -> list[Card]:
    """Leave out what a later task tells of too, as one that moved the image does."""
    last = {card.identity: card for card in cards if card.number}
    return [card for card in cards if not card.number or last[card.identity] is card]


def _cards(run: Run) -> Iterator[Card]:
    tasks = {(task.task_id, task.map_index): task for task in run.tasks}
    stored: set[Any] = set()
    told: set[tuple[str, int]] = set()  # the task instances that have a card

    def known(xcom: PushedXCom) -> dict[str, Any]:
        task = tasks.get((xcom.task_id, xcom.map_index))
        told.add((xcom.task_id, xcom.map_index))
        return {"task_id": xcom.task_id, "map_index": xcom.map_index, "label": task.label if task else ""}

    for xcom in run.pushed:
        if xcom.key != IMAGES:
            continue
        if not isinstance(xcom.value, list):
            sentence = "What was stored is told in a custom XCom backend, which is not read here."
            yield Card(sentence=sentence, **known(xcom))
            continue
        for number, facts in enumerate(xcom.value, start=1):
            if StoredPicture.of(xcom.value, number):
                stored.add(_generation_id(facts))
                yield Card(number=number, facts=facts, **known(xcom))
    for xcom in run.pushed:
        if xcom.key != REQUEST or (generation_id := _generation_id(xcom.value)) is None:
            continue
        who = known(xcom)
        if generation_id not in stored:
            sentence, is_over = _outlook(tasks.get((xcom.task_id, xcom.map_index)), generation_id, run)
            yield Card(sentence=sentence, is_over=is_over, facts=xcom.value, **who)
    for task in run.tasks:
        is_told = (task.task_id, task.map_index) in told or task.state == "removed"
        if task.operator in SUBMITTERS and not is_told:
            sentence, is_over = _outlook(task, None, run)
            yield Card(
                task_id=task.task_id,
                map_index=task.map_index,
                label=task.label,
                sentence=sentence,
                is_over=is_over,
            )


def _generation_id(facts: Any) -> str | None:
    generation_id = facts.get("generation_id") if isinstance(facts, Mapping) else None
    return generation_id if isinstance(generation_id, str) else None


def _outlook(task: TaskState | None, generation_id: str | None, run: Run) -> tuple[str, bool]:
    """Return how far an image is that is not stored, in a sentence, and whether there will be none."""
    named = f"Generation {generation_id}"
    match task.state if task else None:
        case "failed" if generation_id:
            return f"{named} failed, or was not stored: the log of the task says why.", True
        case "failed":
            return "The task failed: its log says why.", True
        case "upstream_failed":
            return "Not made: a task before it failed.", True
        case "skipped":
            return "Not made: the task was skipped.", True
        case "success" if generation_id is None:
            return "The task succeeded without telling of an image.", True
        case "success" if run.is_over:
            return f"{named} was submitted, and no task of this run stored it.", True
        case "success":
            return f"{named} was submitted; the tasks after this one wait for it and store it.", False
        case "up_for_retry":
            return "A try failed, another follows.", False
        case None | "scheduled" | "queued" | "running" | "deferred" | "restarting" | "up_for_reschedule" if (
            generation_id
        ):
            return f"{named} is being made, or stored.", run.is_over
        case "running" | "deferred" | "restarting" | "up_for_reschedule":
            return "Being submitted, or in line for a place at ModelScope.", False
        case "queued":
            return "Waits for a worker.", False
    return "Not started yet.", run.is_over
