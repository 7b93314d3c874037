"""What the gallery shows of a run, and which bytes it serves as an image."""

from __future__ import annotations

import hashlib
import os
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from PIL import Image as Pillow

from airflow_provider_modelscope.decorators.image_generation import _ModelScopeImageDecoratedOperator
from airflow_provider_modelscope.gallery.app import make_app
from airflow_provider_modelscope.gallery.cards import (
    SUBMITTERS,
    Card,
    PushedXCom,
    Run,
    StoredPicture,
    TaskState,
    cards_of,
)
from airflow_provider_modelscope.gallery.files import FRESH, SIDE, NotShownError, whole
from airflow_provider_modelscope.gallery.files import small as small_at
from airflow_provider_modelscope.operators.image_generation import (
    ModelScopeImageGenerationOperator,
    ModelScopeSubmitImageGenerationOperator,
)

if TYPE_CHECKING:
    from pathlib import Path

REQUEST: dict[str, Any] = {"generation_id": "42", "model": "a/b", "prompt": "A cat", "submitted_at": 5.0}


def image(generation_id: str = "42", **facts: Any) -> dict[str, Any]:
    return {
        "uri": f"s3://bucket/{generation_id}.png",
        "storage_conn_id": "my_s3",
        "sha256": "ab" * 32,
        "size_bytes": 5,
        "width": 64,
        "height": 32,
        "generation_id": generation_id,
        "duration_ms": 5412.9,
        "parameters": {"model": "a/b", "prompt": "A cat", "seed": 0, "steps": 30},
        **facts,
    }


def pushed(key: str, value: Any, task_id: str = "draw", map_index: int = -1) -> PushedXCom:
    return PushedXCom(task_id=task_id, map_index=map_index, key=key, value=value)


def task(state: str | None, task_id: str = "draw", map_index: int = -1, **others: Any) -> TaskState:
    given = {"operator": "ModelScopeImageGenerationOperator", "started_at": 1.0, **others}
    return TaskState(task_id=task_id, map_index=map_index, state=state, **given)


def run(*known: PushedXCom | TaskState, state: str = "running") -> Run:
    return Run(
        dag_id="a_dag",
        run_id="a_run",
        state=state,
        pushed=[one for one in known if isinstance(one, PushedXCom)],
        tasks=[one for one in known if isinstance(one, TaskState)],
    )


def only(a_run: Run, **asked: Any) -> Card:
    [[card]] = cards_of(a_run, **asked).values()
    return card


def test_the_tasks_that_submit_are_known_by_their_classes_names() -> None:
    submitters = (
        ModelScopeSubmitImageGenerationOperator,
        ModelScopeImageGenerationOperator,
        _ModelScopeImageDecoratedOperator,
    )
    assert tuple(kind.__name__ for kind in submitters) == SUBMITTERS


class TestCards:
    def test_an_image_is_told_of(self) -> None:
        card = only(run(task("success"), pushed("request", REQUEST), pushed("images", [image()])))
        assert (card.number, card.prompt, card.alternative_text) == (1, "A cat", "Image of: A cat")
        assert card.details == [
            ("Prompt", "A cat"),
            ("Model", "a/b"),
            ("Size", "64 x 32"),
            ("Seed", "0"),
            ("Steps", "30"),
            ("Time taken", "5.4 s"),
            ("Stored as", "s3://bucket/42.png"),
            ("Generation", "42"),
            ("SHA-256", "ab" * 32),
        ]

    def test_its_request_is_given_as_arguments_that_python_reads(self) -> None:
        odd = "A \"cat\" named 'Tom'\n\\ {{ ds }} 猫"
        parameters = {"prompt": odd, "seed": 0, "loras": {"a/b": 1.0}, "other": "thing", "size": None}
        card = only(run(pushed("images", [image(parameters=parameters)])))
        assert eval(f"dict({card.arguments})") == {  # noqa: S307 - our own text
            "prompt": odd, "seed": 0, "loras": {"a/b": 1.0},
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("state", "said", "is_over"),
        [
            (None, "Not started yet.", False),
            ("scheduled", "Not started yet.", False),
            ("queued", "Waits for a worker.", False),
            ("running", "Being submitted, or in line", False),
            ("deferred", "Being submitted, or in line", False),
            ("up_for_retry", "A try failed, another follows.", False),
            ("failed", "The task failed: its log says why.", True),
            ("upstream_failed", "a task before it failed", True),
            ("skipped", "was skipped", True),
            ("success", "without telling of an image", True),
            ("a state of later versions", "Not started yet.", False),
        ],
    )
    def test_a_task_that_has_submitted_nothing_yet_has_a_place(
        self, state: str | None, said: str, is_over: bool
    ) -> None:
        card = only(run(task(state)))
        assert card.number is None
        assert said in card.sentence
        assert card.is_over is is_over

    @pytest.mark.parametrize(
        ("state", "run_state", "said", "is_over"),
        [
            ("running", "running", "Generation 42 is being made", False),
            ("deferred", "running", "Generation 42 is being made", False),
            ("queued", "running", "Generation 42 is being made", False),
            ("scheduled", "running", "Generation 42 is being made", False),
            ("up_for_retry", "running", "another follows", False),
            ("failed", "running", "Generation 42 failed, or was not stored", True),
            ("success", "running", "the tasks after this one wait for it", False),
            ("success", "failed", "no task of this run stored it", True),
        ],
    )
    def test_a_generation_without_an_image_says_how_far_it_is(
        self, state: str, run_state: str, said: str, is_over: bool
    ) -> None:
        card = only(run(task(state), pushed("request", REQUEST), state=run_state))
        assert said in card.sentence
        assert card.is_over is is_over
        assert card.prompt == "A cat"

    def test_the_image_of_a_chain_stands_with_the_task_that_stored_it(self) -> None:
        chain = run(
            task("success", "submit", operator="ModelScopeSubmitImageGenerationOperator"),
            task("success", "store", operator="ModelScopeImageToObjectStorageOperator", started_at=9.0),
            pushed("request", REQUEST, "submit"),
            pushed("images", [image()], "store"),
            state="success",
        )
        assert only(chain).task_id == "store"
        assert only(chain, task_id="submit").task_id == "store"
        assert cards_of(chain, task_id="another") == {}

    def test_an_image_that_a_later_task_moved_is_shown_once_and_with_that_task(self) -> None:
        moved = run(
            task("success", "draw"),
            task("success", "publish", started_at=9.0, operator="PythonOperator"),
            pushed("images", [image("1"), image("2")], "draw"),
            pushed("images", [image("1", uri="s3://bucket/published/1.png")], "publish"),
        )
        assert {name: [card.facts["uri"] for card in cards] for name, cards in cards_of(moved).items()} == {
            "draw": ["s3://bucket/2.png"],
            "publish": ["s3://bucket/published/1.png"],
        }
        assert [card.task_id for card in cards_of(moved, task_id="draw")["draw"]] == ["draw"] * 2

    def test_an_image_takes_the_place_that_was_kept_for_it(self) -> None:
        before = only(run(task("running"), pushed("request", REQUEST)))
        after = only(run(task("success"), pushed("request", REQUEST), pushed("images", [image()])))
        assert before.key == after.key

    def test_cards_stand_by_task_as_they_started_and_by_map_index(self) -> None:
        known = [task("success", "a", started_at=9.0), task(None, "c", started_at=None)]
        known += [task("success", "b", index, label=f"number {index}") for index in (10, 2)]
        images = [pushed("images", [image("3"), image("4")], "a")]
        images += [pushed("images", [image(str(index))], "b", index) for index in (10, 2)]
        groups = cards_of(run(*known, *images))
        assert list(groups) == ["b", "a", "c"]
        assert [(card.map_index, card.label) for card in groups["b"]] == [(2, "number 2"), (10, "number 10")]
        assert [card.number for card in groups["a"]] == [1, 2]

    @pytest.mark.parametrize(
        ("map_index", "label", "which"), [(-1, "", ""), (3, "", "[3]"), (3, "3", "[3]"), (3, "cats", "cats")]
    )
    def test_an_instance_of_a_mapped_task_is_named(self, map_index: int, label: str, which: str) -> None:
        a_task = task("success", map_index=map_index, label=label)
        assert only(run(a_task, pushed("images", [image()], map_index=map_index))).which == which

    def test_only_the_map_index_that_was_asked_for_is_shown(self) -> None:
        images = [pushed("images", [image(str(index))], "b", index) for index in (1, 2)]
        assert only(run(*images), task_id="b", map_index=2).map_index == 2

    def test_other_tasks_have_no_place(self) -> None:
        assert cards_of(run(task("running", operator="PythonOperator"), task("removed"))) == {}

    def test_what_a_custom_backend_keeps_is_said(self) -> None:
        card = only(run(task("success"), pushed("images", "s3://xcom/42.json")))
        assert "custom XCom backend" in card.sentence

    @pytest.mark.parametrize(
        "value",
        [
            [],
            [None],
            ["x"],
            [{}],
            [{"uri": 5, "sha256": "", "size_bytes": 1}],
            [image(size_bytes="5")],
            [[image()]],
        ],
        ids=str,
    )
    def test_what_other_tasks_push_under_the_same_name_is_left_out(self, value: Any) -> None:
        assert cards_of(run(pushed("images", value), pushed("request", value))) == {}

    @pytest.mark.parametrize(
        "odd",
        [
            {"parameters": None},
            {"parameters": [1]},
            {"parameters": {"prompt": 5}},
            {"duration_ms": "x"},
            {"duration_ms": float("inf")},
            {"duration_ms": 10**400},
            {"duration_ms": -1},
            {"width": None},
            {"generation_id": None},
        ],
        ids=str,
    )
    def test_odd_facts_do_no_harm(self, odd: dict[str, Any]) -> None:
        card = only(run(pushed("images", [image(**odd)])))
        assert card.details
        assert card.alternative_text
        assert isinstance(card.arguments, str)


class TestWhichPicture:
    def test_it_is_told_by_its_number(self) -> None:
        images = [image("1"), image("2")]
        second = StoredPicture.of(images, 2)
        assert second
        assert (second.uri, second.storage_conn_id) == ("s3://bucket/2.png", "my_s3")

    @pytest.mark.parametrize("number", [0, 2, -1, 10**9])
    def test_other_numbers_tell_none(self, number: int) -> None:
        assert StoredPicture.of([image()], number) is None

    @pytest.mark.parametrize(
        "odd",
        [
            {"storage_conn_id": 5},
            {"sha256": "x"},
            {"sha256": "ab" * 31 + "\r\n"},
            {"size_bytes": "5"},
            {"uri": None},
        ],
        ids=str,
    )
    def test_an_odd_entry_tells_none(self, odd: dict[str, Any]) -> None:
        assert StoredPicture.of([image(**odd)], 1) is None


def stored(file: Path, content: bytes, **other: Any) -> StoredPicture:
    file.write_bytes(content)
    told = {
        "uri": f"file://{file}",
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
    }
    picture = StoredPicture.of([{**told, **other}], 1)
    assert picture
    return picture


def small(picture: StoredPicture, *, now: float = 0.0) -> bytes:
    return small_at(picture, now=now)


def a_picture(format_: str = "PNG", size: tuple[int, int] = (640, 400), mode: str = "RGB") -> bytes:
    file = BytesIO()
    Pillow.new(mode, size, "red" if mode.startswith("RGB") else 1).save(file, format_)
    return file.getvalue()


def test_no_route_answers_who_is_nobody() -> None:
    routes = [route for route in make_app().routes if isinstance(route, APIRoute)]
    assert {route.path for route in routes} == {"/images", "/image", "/thumbnail"}
    with TestClient(make_app()) as client:
        for route in routes:
            answer = client.get(f"{route.path}?dag_id=a_dag&run_id=a_run&task_id=draw&number=1")
            assert answer.status_code == 401
            assert "Sign in to Airflow" in answer.text
            assert "default-src 'none'" in answer.headers.get("Content-Security-Policy", "default-src 'none'")


class TestServing:
    def test_the_whole_image_is_served_as_what_it_is(self, tmp_path: Path) -> None:
        content = a_picture("JPEG")
        assert whole(stored(tmp_path / "a.png", content)) == (content, "image/jpeg")

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "I;16", "CMYK"])
    def test_a_small_one_is_made(self, tmp_path: Path, mode: str) -> None:
        format_ = "TIFF" if mode == "CMYK" else "PNG"
        content = small(stored(tmp_path / "a.png", a_picture(format_, mode=mode)))
        with Pillow.open(BytesIO(content)) as opened:
            assert (opened.format, opened.size) == ("WEBP", (SIDE, 200))

    def test_a_picture_that_was_overwritten_is_not_taken_for_the_one_of_then(self, tmp_path: Path) -> None:
        picture = stored(tmp_path / "a.png", a_picture())
        (tmp_path / "a.png").write_bytes(a_picture(size=(9, 9)))
        for shown in (whole, small):
            with pytest.raises(NotShownError, match="does not hold this image"):
                shown(picture)

    def test_a_file_whose_checksum_nobody_told_is_not_read_out(self, tmp_path: Path) -> None:
        picture = stored(tmp_path / "a.png", a_picture(), sha256="00" * 32)
        with pytest.raises(NotShownError, match="does not hold this image"):
            whole(picture)

    @pytest.mark.parametrize("content", [b"root:x:0:0", b"<svg onload='alert(1)'/>", b"<html>"], ids=repr)
    def test_what_is_no_picture_is_not_served(self, tmp_path: Path, content: bytes) -> None:
        picture = stored(tmp_path / "a.png", content)
        for shown in (whole, small):
            with pytest.raises(NotShownError, match="is no picture"):
                shown(picture)

    def test_a_picture_cut_off_has_no_small_one(self, tmp_path: Path) -> None:
        with pytest.raises(NotShownError, match="is no picture"):
            small(stored(tmp_path / "a.png", a_picture("JPEG", (2000, 2000))[:-9000]))

    def test_one_that_is_gone_says_so(self, tmp_path: Path) -> None:
        picture = stored(tmp_path / "a.png", a_picture())
        (tmp_path / "a.png").unlink()
        with pytest.raises(NotShownError, match=r"moved, deleted or overwritten"):
            whole(picture)

    def test_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        picture = stored(tmp_path / "a.png", a_picture())
        (tmp_path / "a.png").unlink()
        os.mkfifo(tmp_path / "a.png")
        with pytest.raises(NotShownError, match="does not hold this image"):
            whole(picture)

    def test_a_small_one_is_not_shown_for_long_after_its_object_is_gone(self, tmp_path: Path) -> None:
        picture = stored(tmp_path / "a.png", a_picture())
        before = small(picture)
        (tmp_path / "a.png").unlink()
        assert small(picture) == before
        with pytest.raises(NotShownError, match="does not hold this image"):
            small(picture, now=FRESH)

    def test_a_huge_one_has_no_small_one(self, tmp_path: Path) -> None:
        with pytest.raises(NotShownError, match="no picture that can be shown small"):
            small(stored(tmp_path / "a.png", a_picture(size=(5000, 5000), mode="1")))

    @pytest.mark.parametrize("length", [0, -1, 2**40])
    def test_a_length_that_cannot_be_is_not_read(self, tmp_path: Path, length: int) -> None:
        with pytest.raises(NotShownError, match="too many"):
            whole(stored(tmp_path / "a.png", a_picture(), size_bytes=length))

    @pytest.mark.parametrize("uri", ["http://169.254.169.254/latest", "nonsense", "", "s3://", "ftp://a/b"])
    def test_an_address_of_no_store_is_not_asked(self, tmp_path: Path, uri: str) -> None:
        with pytest.raises(NotShownError, match=r"cannot open|does not hold this image"):
            whole(stored(tmp_path / "a.png", a_picture(), uri=uri))

    def test_an_unknown_connection_is_said(self, tmp_path: Path) -> None:
        pytest.importorskip("s3fs", reason="the extra s3")
        given = {"uri": "s3://bucket/a.png", "storage_conn_id": "nobodys"}
        with pytest.raises(NotShownError, match="nobodys"):
            whole(stored(tmp_path / "a.png", a_picture(), **given))
