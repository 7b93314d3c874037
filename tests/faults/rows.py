"""The faults, one row each: what happens, to which Dag, and what is to come of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.faults.stage import Outcome, Scene

if TYPE_CHECKING:
    from tests.faults.proxy import Fault

OUTAGE = 60.0  # seconds
ONCE = Outcome()
TWICE = Outcome(submissions=2, told=True)
ON_PURPOSE = Outcome(images=2, submissions=2)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fault.

    :param name: Of the row, its Dag run and its connections.
    :param fault: In the words of the table.
    :param play: Make it happen, until the Dag run has ended. Of rows with a ``part``: until the tasks wait.
    :param part: Of Airflow, that is killed while the tasks of all rows with it wait, and is started again.
    """

    name: str
    fault: str
    dag_id: str
    play: Callable[[Scene], None]
    expected: Outcome = ONCE
    part: str = ""
    in_s3: bool = False
    faults: tuple[str, ...] = ()


def wait(scene: Scene) -> None:
    """Bring the tasks to where they wait."""
    scene.start()
    if scene.row.dag_id.endswith("deferred"):
        scene.until_deferred(scene.row.expected.images)
    scene.until_looking()


def kill_when_recorded(scene: Scene) -> None:
    scene.wire.fault = "deaf"  # or else it would soon have deferred
    scene.start()
    scene.until_recorded()
    scene.kill_worker()
    scene.wire.fault = ""
    scene.until_ended()


def kill_before_the_answer(scene: Scene) -> None:
    scene.wire.fault = "mute"
    scene.start()
    scene.until_accepted()
    scene.kill_worker()
    scene.wire.fault = ""
    scene.until_ended()


def kill_while_looking(scene: Scene) -> None:
    wait(scene)
    scene.kill_worker()
    scene.until_ended()


def kill_while_storing(scene: Scene) -> None:
    assert scene.store
    scene.store.fault = "hang"
    wait(scene)
    scene.emulator.finish()
    scene.until_storing()
    scene.kill_worker()
    scene.store.fault = ""
    scene.expect_nothing_stored()
    scene.until_ended()


def outage_of_the_service(scene: Scene) -> None:
    """One minute, in which the generation is finished."""
    wait(scene)
    scene.wire.down()
    scene.emulator.finish()
    up_at = time.monotonic() + OUTAGE
    scene.until(lambda: time.monotonic() >= up_at, "up again")
    scene.wire.up()
    scene.until_ended()


def store_down(scene: Scene) -> None:
    assert scene.store
    scene.store.down()
    wait(scene)
    scene.emulator.finish()
    scene.until_tried()
    scene.store.up()
    scene.expect_nothing_stored()
    scene.until_ended()


def _store_fails(scene: Scene, fault: Fault) -> None:
    assert scene.store
    scene.store.fault = fault
    wait(scene)
    scene.emulator.finish()
    scene.until_storing()
    scene.until_tried()
    scene.expect_nothing_stored()
    scene.store.fault = ""
    scene.until_ended()


def store_refuses(scene: Scene) -> None:
    _store_fails(scene, "503")


def store_breaks_off(scene: Scene) -> None:
    _store_fails(scene, "cut")


def clear_while_waiting(scene: Scene) -> None:
    wait(scene)
    scene.clear()
    scene.until_ended()


def mark_failed_and_clear(scene: Scene) -> None:
    wait(scene)
    scene.mark_failed()
    scene.until(lambda: scene.state == "failed", "marked as failed")
    scene.clear()
    scene.until_ended()


def clear_when_done(scene: Scene) -> None:
    scene.start()
    scene.until_ended()
    scene.clear()
    scene.until_ended()


def until_ended(scene: Scene) -> None:
    """Let the Dag run end."""
    scene.until_ended()


def go_on(scene: Scene) -> None:
    """Leave it to the service's own faults."""
    scene.start()
    scene.until_ended()


KILLED = "worker killed (-9) "
ROWS = (
    Row(
        name="killed_when_accepted",
        fault=KILLED + "as soon as the service accepted; deferrable",
        dag_id="deferred",
        play=kill_when_recorded,
    ),
    Row(
        name="killed_when_accepted_on_worker",
        fault=KILLED + "as soon as the service accepted",
        dag_id="on_worker",
        play=kill_when_recorded,
    ),
    Row(
        name="killed_before_the_answer",
        fault=KILLED + "when the service had accepted and its answer had not come; deferrable",
        dag_id="deferred",
        play=kill_before_the_answer,
        expected=TWICE,
    ),
    Row(
        name="killed_before_the_answer_in_chain",
        fault=KILLED + "when the service had accepted and its answer had not come; submit task",
        dag_id="chain_on_worker",
        play=kill_before_the_answer,
        expected=TWICE,
    ),
    Row(
        name="answer_lost",
        fault="service accepted, its answer was lost",
        dag_id="on_worker",
        play=go_on,
        faults=("submit:lost",),
        expected=TWICE,
    ),
    Row(
        name="never_twice",
        fault='service accepted, its answer was lost; `on_lost_response="fail"`',
        dag_id="never_twice",
        play=go_on,
        faults=("submit:lost",),
        expected=Outcome(images=0, ended="failed"),
    ),
    Row(
        name="killed_while_looking",
        fault=KILLED + "while it looked",
        dag_id="on_worker",
        play=kill_while_looking,
    ),
    Row(
        name="killed_while_looking_in_chain",
        fault=KILLED + "while it looked; sensor",
        dag_id="chain_on_worker",
        play=kill_while_looking,
    ),
    Row(
        name="killed_while_storing",
        fault=KILLED + "while it stored; deferrable",
        dag_id="deferred",
        play=kill_while_storing,
        in_s3=True,
    ),
    Row(
        name="killed_while_storing_on_worker",
        fault=KILLED + "while it stored",
        dag_id="on_worker",
        play=kill_while_storing,
        in_s3=True,
    ),
    Row(
        name="killed_while_storing_in_chain",
        fault=KILLED + "while it stored; transfer",
        dag_id="chain_on_worker",
        play=kill_while_storing,
        in_s3=True,
    ),
    Row(
        name="triggerer",
        fault="triggerer killed (-9) and started; one of five tasks waited for its image, four in line",
        dag_id="five_deferred",
        play=wait,
        part="triggerer",
        expected=Outcome(images=5, submissions=5),
    ),
    Row(
        name="triggerer_in_chain",
        fault="triggerer killed (-9) and started; sensor",
        dag_id="chain_deferred",
        play=wait,
        part="triggerer",
    ),
    *(
        Row(
            name=f"{part.replace('-', '_')}_{dag_id}",
            fault=f"{part} killed (-9) and started{words}",
            dag_id=dag_id,
            play=wait,
            part=part,
        )
        for part in ("scheduler", "api-server")
        for dag_id, words in (("deferred", "; deferrable"), ("on_worker", ""), ("chain_deferred", "; sensor"))
    ),
    Row(
        name="service_down",
        fault="service down for a minute; deferrable",
        dag_id="deferred",
        play=outage_of_the_service,
    ),
    Row(
        name="service_down_on_worker",
        fault="service down for a minute",
        dag_id="on_worker",
        play=outage_of_the_service,
    ),
    Row(
        name="service_down_in_chain",
        fault="service down for a minute; sensor",
        dag_id="chain_deferred",
        play=outage_of_the_service,
    ),
    Row(
        name="store_down",
        fault="object store takes no connections; deferrable",
        dag_id="deferred",
        play=store_down,
        in_s3=True,
    ),
    Row(
        name="store_refuses_in_chain",
        fault="object store answers 503; transfer",
        dag_id="chain_on_worker",
        play=store_refuses,
        in_s3=True,
    ),
    Row(
        name="store_breaks_off",
        fault="object store breaks off in mid-write; deferrable",
        dag_id="deferred",
        play=store_breaks_off,
        in_s3=True,
    ),
    Row(
        name="store_breaks_off_on_worker",
        fault="object store breaks off in mid-write",
        dag_id="on_worker",
        play=store_breaks_off,
        in_s3=True,
    ),
    Row(
        name="cleared_while_waiting",
        fault="cleared while it waited; deferrable",
        dag_id="deferred",
        play=clear_while_waiting,
    ),
    Row(
        name="marked_failed_and_cleared",
        fault="marked as failed while it waited, then cleared; deferrable",
        dag_id="deferred",
        play=mark_failed_and_clear,
    ),
    Row(
        name="cleared_when_done",
        fault="cleared after its success, which asks for a new image; deferrable",
        dag_id="deferred",
        play=clear_when_done,
        expected=ON_PURPOSE,
    ),
    Row(
        name="generation_failed",
        fault="generation FAILED, and the retry asked for a new one; deferrable",
        dag_id="deferred",
        play=go_on,
        faults=("poll:failed",),
        expected=Outcome(submissions=2),
    ),
)
