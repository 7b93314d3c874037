"""The faults, one row each: what happens to which Dag, and what is expected."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tests.faults.system import Run
    from tests.support.proxy import Fault

OUTAGE = 60.0  # seconds
LONG_OUTAGE = 130.0  # longer than queue_timeout, and than Airflow's timeout of other deferred tasks would be


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The expected or the actual outcome of a row.

    :param images: Number of stored objects with the same bytes as the service sent.
    :param others: Number of other stored objects, for example partial ones.
    :param submissions: Number of submissions that the service accepted.
    :param warned: Whether the log warns that a generation may have been charged twice.
    :param state: Of the Dag run.
    :param attempts: The highest number of attempts of a task. Not compared.
    :param problem: An error of the test itself.
    """

    images: int = 1
    others: int = 0
    submissions: int = 1
    warned: bool = False
    state: str = "success"
    attempts: int = field(default=1, compare=False)
    problem: str = ""

    def __str__(self) -> str:
        parts = [_count(self.images, "image"), _count(self.submissions, "submission")]
        if self.warned:
            parts.append("warning in the log")
        if self.others:
            parts.append(f"{_count(self.others, 'object')} not sent by the service")
        return ", ".join([*parts, self.state])

    @property
    def details(self) -> str:
        """The outcome with the number of attempts and the problem, as text."""
        return ", ".join([f"{self} in attempt {self.attempts}", *filter(None, [self.problem])])


ONCE = Outcome()
TWICE = Outcome(submissions=2, warned=True)
ON_PURPOSE = Outcome(images=2, submissions=2)
BATCH = Outcome(images=5, submissions=5)
BATCH_DEFERRED = Outcome(images=3, submissions=3)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fault.

    :param name: Of the row, its Dag run and its connections.
    :param fault: As in the table.
    :param inject: Starts the Dag run, injects the fault and waits for the end of the run. For a row with
        ``part``: waits until the tasks wait.
    :param part: The part of Airflow to kill and restart while the tasks of all rows with this part wait.
    :param outage: Seconds for which the part is away.
    :param in_s3: Whether the images are stored in S3, behind a proxy. Otherwise in a folder.
    :param has_bucket: Whether the bucket of the images exists.
    :param faults: Faults of the emulator.
    :param network: Between the task and the service: plain HTTP, TLS, or TLS in the tunnel of a proxy.
    """

    name: str
    fault: str
    dag_id: str
    inject: Callable[[Run], None]
    expected: Outcome = ONCE
    part: str = ""
    outage: float = 0.0
    in_s3: bool = False
    has_bucket: bool = True
    faults: tuple[str, ...] = ()
    network: Literal["", "tls", "tunnel"] = ""


def wait(run: Run) -> None:
    """Start the Dag run, and return when its tasks wait."""
    run.start()
    if run.row.dag_id.endswith("deferred"):
        run.until_deferred(run.row.expected.images)
    run.until_polling()


def kill_after_record(run: Run) -> None:
    run.service_proxy.fault = "hang-get"  # otherwise the task could defer before it is killed
    run.start()
    run.until_recorded()
    run.kill_worker()
    run.service_proxy.fault = ""
    run.until_ended()


def kill_before_response(run: Run) -> None:
    run.service_proxy.fault = "lose-response"
    run.start()
    run.until_accepted()
    run.kill_worker()
    run.service_proxy.fault = ""
    run.until_ended()


def break_tls(run: Run) -> None:
    run.service_proxy.fault = "plain-504"
    run.start()
    run.until_ended()


def kill_while_polling(run: Run) -> None:
    wait(run)
    run.kill_worker()
    run.until_ended()


def kill_while_storing(run: Run) -> None:
    assert run.store_proxy
    run.store_proxy.fault = "hang"
    wait(run)
    run.emulator.finish()
    run.until_storing()
    run.kill_worker()
    run.store_proxy.fault = ""
    run.expect_nothing_stored()
    run.until_ended()


def wait_in_batch(run: Run) -> None:
    """Start the Dag run, and return when the batch waits for its third or, if it defers, second image."""
    run.start()
    run.until_stored(1 if run.row.dag_id.endswith("deferred") else 2)
    if run.row.dag_id.endswith("deferred"):
        run.until_deferred()


def kill_batch_before_response(run: Run) -> None:
    wait_in_batch(run)
    run.service_proxy.fault = "lose-response"
    run.emulator.finish()
    run.until_accepted(4)
    run.kill_worker()
    run.service_proxy.fault = ""
    run.until_ended()


def kill_batch_while_storing(run: Run) -> None:
    assert run.store_proxy
    wait_in_batch(run)
    run.store_proxy.fault = "hang"
    run.emulator.finish()
    run.until_storing()
    run.kill_worker()
    run.store_proxy.fault = ""
    run.until_ended()


def service_outage(run: Run) -> None:
    """Disconnect the service for a minute. The generation finishes in this time."""
    wait(run)
    run.service_proxy.down()
    run.emulator.finish()
    up_at = time.monotonic() + OUTAGE
    run.until(lambda: time.monotonic() >= up_at, "end of the outage")
    run.service_proxy.up()
    run.until_ended()


def store_outage(run: Run) -> None:
    assert run.store_proxy
    wait(run)
    run.store_proxy.down()
    run.emulator.finish()
    run.until_failed_once()
    run.store_proxy.up()
    run.expect_nothing_stored()
    run.until_ended()


def store_outage_before_submission(run: Run) -> None:
    assert run.store_proxy
    run.store_proxy.down()
    run.start()
    run.until_failed_once()
    run.store_proxy.up()
    run.until_ended()


def _store_fails(run: Run, fault: Fault) -> None:
    assert run.store_proxy
    run.store_proxy.fault = fault
    wait(run)
    run.emulator.finish()
    run.until_storing()
    run.until_failed_once()
    run.expect_nothing_stored()
    run.store_proxy.fault = ""
    run.until_ended()


def store_rejects(run: Run) -> None:
    _store_fails(run, "503")


def store_disconnects(run: Run) -> None:
    _store_fails(run, "cut")


def clear_while_waiting(run: Run) -> None:
    wait(run)
    run.clear()
    run.until_ended()


def mark_failed_and_clear(run: Run) -> None:
    wait(run)
    run.mark_failed()
    run.until(lambda: run.state == "failed", "failed state")
    run.clear()
    run.until_ended()


def clear_after_success(run: Run) -> None:
    run.start()
    run.until_ended()
    run.clear()
    run.until_ended()


def only_run(run: Run) -> None:
    """Inject nothing but the emulator's own faults."""
    run.start()
    run.until_ended()


KILLED = "worker killed (-9) "
ROWS = (
    Row(
        name="killed_after_record",
        fault=KILLED + "right after the service accepted; deferrable",
        dag_id="deferred",
        inject=kill_after_record,
    ),
    Row(
        name="killed_after_record_on_worker",
        fault=KILLED + "right after the service accepted",
        dag_id="on_worker",
        inject=kill_after_record,
    ),
    Row(
        name="killed_before_response",
        fault=KILLED + "after the service accepted and before the response arrived; deferrable",
        dag_id="deferred",
        inject=kill_before_response,
        expected=TWICE,
    ),
    Row(
        name="killed_before_response_in_chain",
        fault=KILLED + "after the service accepted and before the response arrived; submit task",
        dag_id="chain_on_worker",
        inject=kill_before_response,
        expected=TWICE,
    ),
    Row(
        name="response_lost",
        fault="service accepted, response lost",
        dag_id="on_worker",
        inject=only_run,
        faults=("submit:lost",),
        expected=TWICE,
    ),
    Row(
        name="response_lost_and_fail",
        fault='service accepted, response lost; `on_lost_response="fail"`',
        dag_id="fail_on_lost_response",
        inject=only_run,
        faults=("submit:lost",),
        expected=Outcome(images=0, state="failed"),
    ),
    Row(
        name="proxy_504_in_tunnel",
        fault='proxy writes its own 504 into the TLS tunnel after the request; `on_lost_response="fail"`',
        dag_id="fail_on_lost_response",
        inject=break_tls,
        network="tunnel",
        expected=Outcome(images=0, state="failed"),
    ),
    Row(
        name="tls_broken",
        fault='TLS stream broken after the request; `on_lost_response="fail"`',
        dag_id="fail_on_lost_response",
        inject=break_tls,
        network="tls",
        expected=Outcome(images=0, state="failed"),
    ),
    Row(
        name="killed_while_polling",
        fault=KILLED + "while polling",
        dag_id="on_worker",
        inject=kill_while_polling,
    ),
    Row(
        name="killed_while_polling_in_chain",
        fault=KILLED + "while polling; sensor",
        dag_id="chain_on_worker",
        inject=kill_while_polling,
    ),
    Row(
        name="killed_while_storing",
        fault=KILLED + "while storing; deferrable",
        dag_id="deferred",
        inject=kill_while_storing,
        in_s3=True,
    ),
    Row(
        name="killed_while_storing_on_worker",
        fault=KILLED + "while storing",
        dag_id="on_worker",
        inject=kill_while_storing,
        in_s3=True,
    ),
    Row(
        name="killed_while_storing_in_chain",
        fault=KILLED + "while storing; transfer",
        dag_id="chain_on_worker",
        inject=kill_while_storing,
        in_s3=True,
    ),
    Row(
        name="triggerer",
        fault="triggerer killed (-9) and restarted; one of five tasks waits for its image, four are queued",
        dag_id="five_deferred",
        inject=wait,
        part="triggerer",
        expected=Outcome(images=5, submissions=5),
    ),
    Row(
        name="triggerer_outlasts_queue",
        fault="triggerer killed (-9) and restarted after the `queue_timeout` of a queued task",
        dag_id="queue_deferred",
        inject=wait,
        part="triggerer",
        outage=LONG_OUTAGE,
        expected=Outcome(images=2, submissions=2),
    ),
    Row(
        name="triggerer_in_chain",
        fault="triggerer killed (-9) and restarted; sensor",
        dag_id="chain_deferred",
        inject=wait,
        part="triggerer",
    ),
    *(
        Row(
            name=f"{part.replace('-', '_')}_{dag_id}",
            fault=f"{part} killed (-9) and restarted{variant}",
            dag_id=dag_id,
            inject=wait,
            part=part,
        )
        for part in ("scheduler", "api-server")
        for dag_id, variant in (
            ("deferred", "; deferrable"),
            ("on_worker", ""),
            ("chain_deferred", "; sensor"),
        )
    ),
    Row(
        name="batch_killed_before_response",
        fault=KILLED + "after the service accepted and before the response arrived; batch",
        dag_id="batch_on_worker",
        inject=kill_batch_before_response,
        expected=replace(BATCH, submissions=6, warned=True),
    ),
    Row(
        name="batch_killed_while_storing",
        fault=KILLED + "while storing; batch",
        dag_id="batch_on_worker",
        inject=kill_batch_while_storing,
        in_s3=True,
        expected=BATCH,
    ),
    *(
        Row(
            name=f"{part}_{dag_id}",
            fault=f"{part} killed (-9) and restarted; {variant}",
            dag_id=dag_id,
            inject=wait_in_batch,
            part=part,
            expected=expected,
        )
        for part, dag_id, variant, expected in (
            ("triggerer", "batch_deferred", "deferrable batch", BATCH_DEFERRED),
            ("scheduler", "batch_deferred", "deferrable batch", BATCH_DEFERRED),
            ("scheduler", "batch_on_worker", "batch", BATCH),
        )
    ),
    Row(
        name="service_outage",
        fault="service down for a minute; deferrable",
        dag_id="deferred",
        inject=service_outage,
    ),
    Row(
        name="service_outage_on_worker",
        fault="service down for a minute",
        dag_id="on_worker",
        inject=service_outage,
    ),
    Row(
        name="service_outage_in_chain",
        fault="service down for a minute; sensor",
        dag_id="chain_deferred",
        inject=service_outage,
    ),
    Row(
        name="store_outage",
        fault="object store refuses connections; deferrable",
        dag_id="deferred",
        inject=store_outage,
        in_s3=True,
    ),
    Row(
        name="store_outage_before_submission",
        fault="object store refuses connections before the submission; deferrable",
        dag_id="deferred",
        inject=store_outage_before_submission,
        in_s3=True,
    ),
    Row(
        name="bucket_missing",
        fault="bucket missing; deferrable",
        dag_id="deferred",
        inject=only_run,
        in_s3=True,
        has_bucket=False,
        expected=Outcome(images=0, submissions=0, state="failed"),
    ),
    Row(
        name="store_rejects_in_chain",
        fault="object store responds with 503; transfer",
        dag_id="chain_on_worker",
        inject=store_rejects,
        in_s3=True,
    ),
    Row(
        name="store_disconnects",
        fault="object store closes the connection during a write; deferrable",
        dag_id="deferred",
        inject=store_disconnects,
        in_s3=True,
    ),
    Row(
        name="store_disconnects_on_worker",
        fault="object store closes the connection during a write",
        dag_id="on_worker",
        inject=store_disconnects,
        in_s3=True,
    ),
    Row(
        name="cleared_while_waiting",
        fault="cleared while waiting; deferrable",
        dag_id="deferred",
        inject=clear_while_waiting,
    ),
    Row(
        name="marked_failed_and_cleared",
        fault="marked as failed while waiting, then cleared; deferrable",
        dag_id="deferred",
        inject=mark_failed_and_clear,
    ),
    Row(
        name="cleared_after_success",
        fault="cleared after success, which requests a new image; deferrable",
        dag_id="deferred",
        inject=clear_after_success,
        expected=ON_PURPOSE,
    ),
    Row(
        name="generation_failed",
        fault="generation FAILED, and the retry submits a new one; deferrable",
        dag_id="deferred",
        inject=only_run,
        faults=("poll:failed",),
        expected=Outcome(submissions=2),
    ),
    Row(
        name="moderated",
        fault="prompt moderated: generation FAILED with `DataInspectionFailed`; deferrable, two retries",
        dag_id="deferred",
        inject=only_run,
        faults=("poll:moderated:always",),
        expected=Outcome(images=0, state="failed"),
    ),
    Row(
        name="image_gone",
        fault="the URL of each image answers 404 for ever; deferrable",
        dag_id="deferred",
        inject=only_run,
        faults=("image:404:always",),
        expected=Outcome(images=0, submissions=2, state="failed"),
    ),
    Row(
        name="image_gone_on_worker",
        fault="the URL of each image answers 404 for ever",
        dag_id="on_worker",
        inject=only_run,
        faults=("image:404:always",),
        expected=Outcome(images=0, submissions=2, state="failed"),
    ),
)


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
