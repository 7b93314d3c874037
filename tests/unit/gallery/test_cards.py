"""What is shown of a run: which cards, in which order, and what they say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_modelscope.gallery.cards import CHUNK_SIZE, Card, cards_of, chunks_of
from airflow_provider_modelscope.gallery.run import PushedXCom, Run, TaskState
from airflow_provider_modelscope.links import Instance
from tests.unit.gallery.conftest import entry

NOW = 1000.0
DURATIONS = [(10_000, "a/b"), (20_000, "a/b"), (90_000, "a/b"), (5_000, "c/d"), (None, "a/b")]
REQUEST: dict[str, Any] = {"generation_id": "42", "model": "a/b", "prompt": "A cat", "submitted_at": 5.0}


def pushed(
    key: str, value: Any, task_id: str = "draw", map_index: int = -1, region_id: str = ""
) -> PushedXCom:
    return PushedXCom(instance=Instance.make(task_id, map_index, region_id), key=key, value=value)


def task(
    state: str | None, task_id: str = "draw", map_index: int = -1, region_id: str = "", **others: Any
) -> TaskState:
    given = {"operator": "ModelScopeImageGenerationOperator", "started_at": 1.0, **others}
    return TaskState(instance=Instance.make(task_id, map_index, region_id), state=state, **given)


def run(*parts: PushedXCom | TaskState, state: str = "running") -> Run:
    return Run(
        dag_id="a_dag",
        run_id="a_run",
        state=state,
        xcoms=[part for part in parts if isinstance(part, PushedXCom)],
        tasks=[part for part in parts if isinstance(part, TaskState)],
    )


def only_card(a_run: Run, **selection: Any) -> Card:
    [[card]] = cards_of(a_run, now=NOW, **selection).values()
    return card


class TestImage:
    def test_the_model_that_was_asked_first_is_shown(self) -> None:
        card = only_card(run(task("success"), pushed("images", [entry(asked_model="c/d")])))
        assert card.details[1:3] == [("Model", "a/b"), ("Model asked first", "c/d")]

    def test_a_card_shows_what_is_known_of_its_image(self) -> None:
        image = entry(sidecar_uri="s3://bucket/42.png.json")
        card = only_card(run(task("success"), pushed("request", REQUEST), pushed("images", [image])))
        assert (card.number, card.prompt, card.alternative_text) == (1, "A cat", "Image of: A cat")
        assert card.details == [
            ("Prompt", "A cat"),
            ("Model", "a/b"),
            ("Size", "64 × 32"),
            ("Seed", "0"),
            ("Steps", "30"),
            ("Duration", "5.4 s"),
            ("Credit", "0.5"),
        ]
        assert card.technical_details == [
            ("URI", "s3://bucket/42.png"),
            ("Sidecar", "s3://bucket/42.png.json"),
            ("Bytes", "5"),
            ("SHA-256", "ab" * 32),
            ("Generation ID", "42"),
        ]
        assert (card.facts, card.file_name) == (["64 × 32", "seed 0"], "42.png")

    def test_the_request_is_copied_as_python_arguments(self) -> None:
        odd = "A \"cat\" named 'Tom'\n\\ {{ ds }} 猫"
        parameters = {"prompt": odd, "seed": 0, "loras": {"a/b": 1.0}, "other": "thing", "size": None}
        card = only_card(run(pushed("images", [entry(parameters=parameters)])))
        assert eval(f"dict({card.arguments})") == {  # noqa: S307 - our own text
            "prompt": odd, "seed": 0, "loras": {"a/b": 1.0},
        }  # fmt: skip

    @pytest.mark.parametrize(
        "wrong",
        [
            {"parameters": None},
            {"parameters": {"prompt": 5, "seed": [1]}},
            {"duration_ms": float("inf")},
            {"duration_ms": 10**400},
            {"credit": None},
            {"credit": float("nan")},
            {"credit": "<b>"},
            {"width": None},
            {"generation_id": None},
        ],
        ids=str,
    )
    def test_wrong_optional_facts_are_left_out(self, wrong: dict[str, Any]) -> None:
        card = only_card(run(pushed("images", [entry(**wrong)])))
        assert ("SHA-256", "ab" * 32) in card.technical_details
        assert "None" not in dict(card.details + card.technical_details).values()
        assert "None" not in " ".join(card.facts)
        assert card.alternative_text
        assert isinstance(card.arguments, str)

    @pytest.mark.parametrize(
        "value", [None, 5, {"cats": 5}, [], [None], ["x"], [{}], [{"uri": 5}], [[entry()]]], ids=str
    )
    def test_values_of_other_shapes_are_left_out(self, value: Any) -> None:
        assert cards_of(run(pushed("images", value), pushed("request", value)), now=NOW) == {}

    def test_an_entry_of_another_shape_keeps_its_number(self) -> None:
        assert only_card(run(pushed("images", [None, entry()]))).number == 2

    def test_an_xcom_in_a_custom_backend_is_mentioned(self) -> None:
        card = only_card(run(task("success"), pushed("images", "s3://xcom/42.json")))
        assert card.status
        assert "custom XCom backend" in card.status.sentence


class TestWithoutImage:
    def test_a_task_without_a_submission_has_a_card(self) -> None:
        card = only_card(run(task("queued", prompt="A cat", model="a/b")))
        assert (card.prompt, card.model) == ("A cat", "a/b")
        assert (card.image, card.status and card.status.label) == (None, "Waiting for a worker")
        assert card.kind == "pending"

    def test_a_generation_without_an_image_has_a_card(self) -> None:
        card = only_card(run(task("running"), pushed("request", REQUEST)))
        assert (card.prompt, card.model, card.status and card.status.label) == ("A cat", "a/b", "Generating")
        assert card.kind == "pending"

    def test_the_usual_duration_is_that_of_the_same_model(self) -> None:
        images = [entry(str(ms), duration_ms=ms, model=model) for ms, model in DURATIONS]
        groups = cards_of(
            run(task("running"), pushed("request", REQUEST), pushed("images", images, "other")), now=NOW
        )
        [card] = groups["draw"]
        assert card.status
        assert card.status.usual == 20.0

    def test_the_size_is_known_before_the_image(self) -> None:
        card = only_card(run(task("running"), pushed("request", REQUEST | {"size": "512x768", "seed": 7})))
        assert card.facts == ["512 × 768", "seed 7"]

    @pytest.mark.parametrize(
        ("state", "kind"), [("failed", "failed"), ("upstream_failed", "failed"), ("skipped", "idle")]
    )
    def test_a_task_that_was_skipped_has_not_failed(self, state: str, kind: str) -> None:
        assert only_card(run(task(state))).kind == kind

    @pytest.mark.parametrize(("own", "usual"), [([], 40.0), ([("a/b", 20_000)], 20.0)])
    def test_recent_runs_say_the_usual_duration_until_this_one_does(
        self, own: list[tuple[str, int]], usual: float
    ) -> None:
        recent = [[entry(duration_ms=40_000, model="a/b"), entry(duration_ms=1, model="c/d"), None, 7], [[]]]
        images = [entry("7", duration_ms=ms, model=model) for model, ms in own]
        generating = run(task("running"), pushed("request", REQUEST), pushed("images", images, "other"))
        [card] = cards_of(replace(generating, recent_images=recent), now=NOW)["draw"]
        assert card.status
        assert card.status.usual == usual

    def test_each_place_in_the_queue_is_shown(self) -> None:
        waiting = [
            task("deferred", map_index=index, trigger="ModelScopeQueueTrigger", trigger_id=index + 1)
            for index in range(2)
        ]
        queue = {1: ("a_conn", 9.0), 2: ("a_conn", 5.0), 3: ("other", 1.0)}
        queued = replace(run(*waiting), queue=queue, triggerer_seen_at=NOW)
        [cards] = cards_of(queued, now=NOW).values()
        assert [card.status and card.status.label for card in cards] == [
            "Queued, 2nd of 2", "Queued, 1st of 2",
        ]  # fmt: skip

    def test_an_image_takes_over_the_key_of_its_pending_card(self) -> None:
        before = only_card(run(task("running"), pushed("request", REQUEST)))
        after = only_card(run(task("success"), pushed("request", REQUEST), pushed("images", [entry()])))
        assert before.key == after.key

    def test_other_and_removed_tasks_have_no_card(self) -> None:
        assert cards_of(run(task("running", operator="PythonOperator"), task("removed")), now=NOW) == {}


class TestFailure:
    ERROR: dict[str, Any] = {"type": "QueueFullError", "message": "The queue is full. Wait."}

    def test_an_error_belongs_to_its_task_instance(self) -> None:
        tasks = [task("failed", map_index=index) for index in range(2)]
        [cards] = cards_of(run(*tasks, pushed("error", self.ERROR, map_index=1)), now=NOW).values()
        assert [(card.place, card.error and card.error.type) for card in cards] == [
            ("draw [0]", None), ("draw [1]", "QueueFullError"),
        ]  # fmt: skip
        assert cards[1].error_text == "draw [1]: QueueFullError: The queue is full. Wait."

    @pytest.mark.parametrize(
        ("name", "documented"),
        [
            ("QueueFullError", "QueueFullError"),
            ("ValueError", ""),
            ("Mapping", ""),
            ("__name__", ""),
            ("<b>", ""),
        ],
    )
    def test_only_errors_of_this_package_are_linked(self, name: str, documented: str) -> None:
        card = only_card(run(task("failed"), pushed("error", {**self.ERROR, "type": name})))
        assert card.documented_error == documented

    @pytest.mark.parametrize(
        "value", [None, [], "x", {}, {"type": 5, "message": "x"}, {"type": "x"}], ids=str
    )
    def test_errors_of_other_shapes_are_left_out(self, value: Any) -> None:
        card = only_card(run(task("failed"), pushed("error", value)))
        assert card.error is None
        assert card.status
        assert card.status.sentence == "No error is recorded. See the log."

    @pytest.mark.parametrize(
        ("state", "operator", "has_error", "labels"),
        [
            ("failed", "ModelScopeImageGenerationSensor", True, ["Submitted", "Failed"]),
            ("failed", "PythonOperator", False, ["Submitted"]),
            ("up_for_retry", "ModelScopeImageGenerationSensor", True, ["Submitted"]),
            ("failed", "ModelScopeImageBatchOperator", True, ["Submitted"]),  # it has a section
        ],
    )
    def test_a_task_that_does_not_submit_has_a_card_if_it_failed(
        self, state: str, operator: str, labels: list[str], *, has_error: bool
    ) -> None:
        a_run = run(
            task("success", "submit", operator="ModelScopeSubmitImageGenerationOperator"),
            task(state, "wait", operator=operator, started_at=2.0),
            pushed("request", REQUEST, "submit"),
            *([pushed("error", self.ERROR, "wait")] if has_error else []),
        )
        cards = [card for group in cards_of(a_run, now=NOW).values() for card in group]
        assert [card.status and card.status.label for card in cards] == labels


class TestCleared:
    @pytest.mark.parametrize("state", [None, "scheduled", "queued", "restarting"])
    def test_an_image_of_an_earlier_attempt_is_marked(self, state: str | None) -> None:
        card = only_card(run(task(state), pushed("images", [entry()])))
        assert card.image
        assert card.status
        assert card.status.label == "Being generated again"

    @pytest.mark.parametrize(
        ("a_task", "run_state"),
        [
            (task("success"), "running"),
            (task("running"), "running"),  # it has stored its images
            (task("queued", next_method="execute_complete"), "running"),
            (task(None), "success"),
        ],
        ids=str,
    )
    def test_an_image_of_this_attempt_is_not_marked(self, a_task: TaskState, run_state: str) -> None:
        assert only_card(run(a_task, pushed("images", [entry()]), state=run_state)).status is None


class TestChunks:
    def test_a_change_of_a_card_changes_its_chunk_only(self) -> None:
        def versions(seed: int) -> list[str]:
            images = [entry(str(number), seed=number) for number in range(3 * CHUNK_SIZE)]
            images[CHUNK_SIZE]["sha256"] = f"{seed:064}"
            [cards] = cards_of(run(pushed("images", images)), now=NOW).values()
            chunks = chunks_of(cards)
            assert [card for chunk in chunks for card in chunk.cards] == cards
            return [chunk.version for chunk in chunks]

        before, after = versions(1), versions(2)
        assert before == versions(1)
        assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]


class TestGroups:
    def test_an_image_is_shown_with_the_task_that_stored_it(self) -> None:
        chain = run(
            task("success", "submit", operator="ModelScopeSubmitImageGenerationOperator"),
            task("success", "store", operator="ModelScopeImageToObjectStorageOperator", started_at=9.0),
            pushed("request", REQUEST, "submit"),
            pushed("images", [entry()], "store"),
            state="success",
        )
        assert only_card(chain).instance.task_id == "store"
        assert only_card(chain, only=Instance.make("submit", -1)).instance.task_id == "store"
        assert cards_of(chain, only=Instance.make("another", -1), now=NOW) == {}

    def test_a_moved_image_is_shown_once_with_the_last_task(self) -> None:
        moved = run(
            task("success", "draw"),
            task("success", "publish", started_at=9.0, operator="PythonOperator"),
            pushed("images", [entry("1"), entry("2")], "draw"),
            pushed("images", [entry("1", uri="s3://bucket/published/1.png")], "publish"),
        )
        uris = {
            task_id: [card.image.uri for card in cards if card.image]
            for task_id, cards in cards_of(moved, now=NOW).items()
        }
        assert uris == {"draw": ["s3://bucket/2.png"], "publish": ["s3://bucket/published/1.png"]}
        assert len(cards_of(moved, only=Instance.make("draw", -1), now=NOW)["draw"]) == 2

    def test_cards_are_sorted_by_start_then_map_index(self) -> None:
        tasks = [task("success", "a", started_at=9.0), task(None, "c", started_at=None)]
        tasks += [task("success", "b", index, label=f"number {index}") for index in (10, 2)]
        images = [pushed("images", [entry("3"), entry("4")], "a")]
        images += [pushed("images", [entry(str(index))], "b", index) for index in (10, 2)]
        groups = cards_of(run(*tasks, *images), now=NOW)
        assert list(groups) == ["b", "a", "c"]
        assert [(card.instance.map_index, card.label) for card in groups["b"]] == [
            (2, "number 2"),
            (10, "number 10"),
        ]
        assert [card.number for card in groups["a"]] == [1, 2]

    @pytest.mark.parametrize(
        ("map_index", "label", "name"),
        [(-1, "", ""), (3, "", "[3]"), (3, "3", "[3]"), (3, "cats", "cats")],
    )
    def test_mapped_instances_are_named(self, map_index: int, label: str, name: str) -> None:
        a_task = task("success", map_index=map_index, label=label)
        card = only_card(run(a_task, pushed("images", [entry()], map_index=map_index)))
        assert card.instance_name == name

    def test_one_map_index_can_be_selected(self) -> None:
        images = [pushed("images", [entry(str(index))], "b", index) for index in (1, 2)]
        assert only_card(run(*images), only=Instance.make("b", 2)).instance.map_index == 2

    def test_iterations_of_a_loop_are_kept_apart(self) -> None:
        """A mapped task in a loop has the same index in each iteration."""
        iterations = ("region-1", "region-2")
        tasks = [task("success", map_index=0, region_id=region) for region in iterations]
        images = [pushed("images", [entry(region)], "draw", 0, region) for region in iterations]
        looped = run(*tasks, *images)
        [cards] = cards_of(looped, now=NOW).values()
        assert [card.generation_id for card in cards] == [*iterations]
        assert len({card.key for card in cards}) == 2
        assert only_card(looped, only=Instance.make("draw", 0, "region-2")).generation_id == "region-2"

    def test_a_tab_shows_every_iteration_of_its_task(self) -> None:
        images = [pushed("images", [entry(str(index))], "draw", index, "region") for index in (0, 1)]
        [cards] = cards_of(run(*images), only=Instance.make("draw", -1), now=NOW).values()
        assert [card.instance_name for card in cards] == ["[0]", "[1]"]
