"""Which images of a Dag a page shows, and where the next page begins."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_modelscope.gallery import batch_state
from airflow_provider_modelscope.gallery.dag_images import (
    BATCH_COST,
    MAX_COST,
    MAX_TRAIL,
    PAGE_SIZE,
    DagCard,
    DagXCom,
    Found,
    ImagePage,
    Position,
    RunFacts,
    Wanted,
    find_images,
    trail_of,
)
from airflow_provider_modelscope.links import Instance
from airflow_provider_modelscope.xcoms import StoredImage
from tests.support.batches import StateFolder, result
from tests.unit.gallery.conftest import entry

if TYPE_CHECKING:
    from pathlib import Path

RUN = RunFacts(run_id="a_run", started_at=datetime(2026, 11, 29, 9, 5, tzinfo=UTC))
DRAW = Instance.make("draw", -1)


def image(number: int, **facts: Any) -> dict[str, Any]:
    return entry(str(number), sha256=f"{number:064x}", **facts)


def xcom(value: Any, pushed_at: int = 1, key: str = "images", run: int = 1) -> DagXCom:
    at = Position(run=run, pushed_at=pushed_at)
    return DagXCom(run=RUN, instance=DRAW, key=key, value=value, position=at)


class Database:
    """XComs, the newest first, of which so many are read at once."""

    def __init__(self, *xcoms: DagXCom, at_once: int = 7) -> None:
        self.xcoms = xcoms
        self.at_once = at_once
        self.reads = 0

    def read(self, position: Position, runs: int) -> Found:
        self.reads += 1
        given = (position.run, position.pushed_at)
        rest = [one for one in self.xcoms if (one.position.run, one.position.pushed_at) <= given]
        rest = rest[position.skipped :]
        older = rest[self.at_once].position if len(rest) > self.at_once else None
        return Found(xcoms=rest[: self.at_once], runs=1, older=older)

    def page(self, start: Position | None = None, shown: Any = (), **wanted: Any) -> ImagePage:
        return find_images(self.read, Wanted(**wanted), start or Position(), dag_id="a_dag", shown=shown)


def ids(page: ImagePage) -> list[int]:
    return [int(card.generation_id or 0) for card in page.cards]


def test_pages_hold_every_image_once_the_newest_first() -> None:
    database = Database(*(xcom([image(3 * n), image(3 * n - 1)], pushed_at=n) for n in range(100, 0, -1)))
    seen: list[int] = []
    page = database.page()
    while page.older:
        assert len(page.cards) == PAGE_SIZE
        seen += ids(page)
        page = database.page(page.older)
    seen += ids(page)
    assert seen == [number for n in range(100, 0, -1) for number in (3 * n, 3 * n - 1)]


def test_a_page_keeps_its_images_while_newer_ones_come() -> None:
    old = [xcom([image(n)], pushed_at=n) for n in range(100, 0, -1)]
    second = Database(*old).page().older
    before = ids(Database(*old).page(second))
    more = [xcom([image(n)], pushed_at=n) for n in range(150, 100, -1)]
    assert ids(Database(*more, *old).page(second)) == before


def test_a_page_can_begin_within_a_list_of_images() -> None:
    database = Database(xcom([image(n) for n in range(100)]))
    first = database.page()
    assert first.older == Position(run=1, pushed_at=1, left=100 - PAGE_SIZE)
    assert ids(database.page(first.older)) == list(range(PAGE_SIZE, 100))


def test_a_full_last_page_has_no_older_one() -> None:
    assert Database(xcom([image(n) for n in range(PAGE_SIZE)])).page().older is None


def test_an_image_that_was_moved_is_shown_once() -> None:
    moved, drawn = image(1, uri="s3://public/1.png"), image(1)
    page = Database(xcom([moved], pushed_at=2), xcom([drawn, image(2)])).page()
    assert [card.image and card.image.uri for card in page.cards] == [
        "s3://public/1.png",
        "s3://bucket/2.png",
    ]
    shown = [StoredImage.from_json(moved)]
    assert ids(Database(xcom([drawn, image(2)])).page(shown=shown)) == [2]


@pytest.mark.parametrize("value", [None, [], {}, [5, None, {"uri": 5}]], ids=str)
def test_what_is_no_image_is_left_out(value: Any) -> None:
    page = Database(xcom(value), xcom([image(7)])).page()
    assert (ids(page), page.problems) == ([7], [])


def test_a_custom_backend_is_reported() -> None:
    [problem] = Database(xcom("s3://xcom/42.json"), xcom("s3://xcom/43.json")).page().problems
    assert "custom XCom backend" in problem


class TestSearch:
    @pytest.mark.parametrize(
        ("wanted", "is_found"),
        [
            ({"prompt": "青瓦"}, True),
            ({"prompt": "a CAT,"}, True),
            ({"prompt": "a cat， 雨后"}, True),  # a full-width comma
            ({"prompt": "100% of_it"}, True),
            ({"prompt": "100_"}, False),
            ({"prompt": "dog"}, False),
            ({"prompt": "x" * 10_000}, False),
            ({"prompt": "\0"}, False),
            ({"prompt": "'; drop table xcom; --"}, False),
            ({"prompt": "🦊"}, True),
            ({"model": "qwen"}, True),
            ({"model": "flux"}, False),
            ({"seed": "42"}, True),
            ({"seed": "4"}, False),
            ({"seed": "-1"}, False),
            ({"seed": "42", "model": "flux"}, False),
        ],
        ids=str,
    )
    def test_it_finds(self, wanted: dict[str, Any], is_found: bool) -> None:
        prompt = "A cat, 雨后的青瓦白墙 🦊 100% of_it"
        parameters = {"prompt": prompt, "model": "Qwen/Qwen-Image", "seed": 42}
        page = Database(xcom([image(1, parameters=parameters)])).page(**wanted)
        assert bool(page.cards) is is_found
        assert page.models == ["Qwen/Qwen-Image"]
        assert page.is_complete

    def test_it_stops_in_time_and_goes_on_from_there(self) -> None:
        total = MAX_COST + 1000
        rare = {0: {"prompt": "rare"}, total - 1: {"prompt": "rare"}}
        xcoms = [xcom([image(n, parameters=rare.get(n, {}))], pushed_at=total - n) for n in range(total)]
        database = Database(*xcoms, at_once=500)
        page = database.page(prompt="rare")
        assert (ids(page), page.is_complete, page.searched_to) == ([0], False, RUN)
        page = database.page(page.older, prompt="rare")
        assert (ids(page), page.is_complete, page.older) == ([total - 1], True, None)

    @pytest.mark.parametrize(("found", "asked"), [(200, {10}), (0, {10, 40, 160, 640, 1000})])
    def test_more_runs_are_read_at_once_if_they_have_few_images(self, found: int, asked: set[int]) -> None:
        runs_of: list[int] = []

        def read(position: Position, runs: int) -> Found:
            runs_of.append(runs)
            xcoms = [xcom([image(n)]) for n in range(found)]
            return Found(xcoms=xcoms, runs=runs, older=Position(run=position.run - runs))

        find_images(read, Wanted(prompt="rare"), Position(run=10**9), dag_id="a_dag")
        assert set(runs_of) == asked

    def test_it_stops_in_time_among_runs_without_images(self) -> None:
        def read(position: Position, runs: int) -> Found:
            return Found(xcoms=[], runs=runs, older=Position(run=position.run - runs))

        page = find_images(read, Wanted(), Position(run=10**9), dag_id="a_dag")
        assert page.older
        assert MAX_COST <= 10**9 - page.older.run < 2 * MAX_COST
        assert not page.is_complete


class TestBatch:
    @pytest.fixture(autouse=True)
    def _nothing_cached(self) -> None:
        batch_state._results.cache_clear()

    def test_its_images_are_paged(self, tmp_path: Path) -> None:
        folder = StateFolder(tmp_path)
        rows = [result(n, "stored" if n % 10 else "failed") for n in range(1, 301)]
        folder.write(rows[:290], latest=rows[290:], total=300)
        database = Database(xcom(folder.xcom(300), pushed_at=2, key="batch"), xcom([image(999)]))
        seen: list[int] = []
        page = database.page()
        while page.older:
            seen += ids(page)
            page = database.page(page.older)
        assert [*seen, *ids(page)] == [*(n for n in range(300, 0, -1) if n % 10), 999]

    def test_a_card_names_the_row_and_its_segment(self, tmp_path: Path) -> None:
        folder = StateFolder(tmp_path)
        [name] = folder.write([result(1)], total=1)
        [card] = Database(xcom(folder.xcom(1), key="batch")).page().cards
        assert card.query("a_run") == (
            f"run_id=a_run&task_id=draw&map_index=-1&number=1&row=000001&segment={name}"
        )
        assert (card.key, card.place) == ("a_run draw  -1 row 000001 1", "draw 000001")

    def test_a_search_does_not_read_all_results(self, tmp_path: Path) -> None:
        folder = StateFolder(tmp_path)
        folder.write([result(n) for n in range(1, 4001)], total=4000)
        database = Database(xcom(folder.xcom(4000), key="batch"))
        page = database.page(prompt="Cat number 1")  # also 10, 11, ...
        newest = [n for n in range(4000, 0, -1) if str(n).startswith("1")]
        assert ids(page) == newest[:PAGE_SIZE] or not page.is_complete
        page = database.page(prompt="nothing")
        assert (page.is_complete, page.older) == (
            False,
            Position(run=1, pushed_at=1, left=4000 - 100 * (MAX_COST // BATCH_COST)),
        )

    @pytest.mark.parametrize("others", [{"task_id": "other"}, {"run_id": "other"}, {"dag_id": "other"}])
    def test_the_state_of_another_task_is_not_read(self, tmp_path: Path, others: dict[str, Any]) -> None:
        folder = StateFolder(tmp_path, **others)
        folder.write([result(1)], total=1)
        assert Database(xcom(folder.xcom(1), key="batch")).page().cards == []

    def test_a_store_that_cannot_be_opened_is_reported(self, tmp_path: Path) -> None:
        folder = StateFolder(tmp_path).xcom(1)
        folder["state"] = folder["state"].replace("file://", "unknown://")
        [problem] = Database(xcom(folder, key="batch")).page().problems
        assert problem.startswith("The API server cannot open this batch")


class TestPosition:
    def test_its_text_names_it(self) -> None:
        position = Position(run=7, pushed_at=1790000000123456, skipped=3, left=20)
        assert Position.from_text(str(position)) == position

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "x",
            "-1-2-3-4",
            "1-2-3",
            "1-2-3-4-5",
            "9999999999-1-0-0",
            "1-2-3-٤",
            "1" * 5000,
            "1-2-3-4\n",
            "\0",
        ],
    )
    def test_another_text_names_none(self, text: str) -> None:
        assert Position.from_text(text) is None
        assert trail_of(text) == []

    def test_a_trail_has_the_last_positions(self) -> None:
        positions = [Position(run=n) for n in range(MAX_TRAIL + 9)]
        assert trail_of(".".join(map(str, positions))) == positions[9:]


class TestConf:
    def conf(self, params: list[str], **parameters: Any) -> str:
        stored = StoredImage.from_json(image(1, parameters=parameters))
        return DagCard(instance=DRAW, label="", run=RUN, image=stored).conf(params)

    def test_it_has_what_the_dag_and_the_image_share(self) -> None:
        parameters = {"prompt": "雨后", "seed": 0, "steps": None, "model": "a/b", "destination": "s3://x/"}
        conf = self.conf(["seed", "prompt", "size", "steps", "destination"], **parameters)
        assert json.loads(conf) == {"prompt": "雨后", "seed": 0}
        assert "雨后" in conf

    def test_without_a_shared_param_it_is_empty(self) -> None:
        assert self.conf(["destination"], prompt="A cat") == ""

    @pytest.mark.parametrize(
        ("url", "is_kept"),
        [
            ("https://example.org/a.png", True),
            ("https://example.org/a.png?...", False),
            (["https://example.org/a.png", "data:image/png;base64,AAAA..."], False),
        ],
    )
    def test_a_shortened_source_image_is_left_out(self, url: Any, is_kept: bool) -> None:
        conf = json.loads(self.conf(["prompt", "image_url"], prompt="A cat", image_url=url))
        assert ("image_url" in conf) is is_kept
