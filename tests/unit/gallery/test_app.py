"""The gallery's routes: who may see what, and how it is served."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode
from uuid import UUID

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from PIL import Image as Pillow

from airflow_provider_modelscope.gallery.app import THREADS, _limiter, make_app
from tests.support.batches import StateFolder, result, stored_at
from tests.unit.gallery.conftest import encoded, entry, needs_gallery, needs_loops

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from pathlib import Path

    from anyio import CapacityLimiterStatistics

    from tests.unit.gallery.conftest import AuthManager, Bucket, Database

pytestmark = needs_gallery

ROUTES = ("images", "all-images", "image", "thumbnail")
IMAGE_ROUTES = ("image", "thumbnail")


def is_done(response: Future[Any]) -> bool:
    return response.done()


def url(route: str, *, dag_id: str = "a_dag", **others: Any) -> str:
    ids = {"run_id": "a_run", "task_id": "draw", "map_index": -1}
    return f"/{dag_id}/{route}?{urlencode(ids | others)}"


class TestAccess:
    def test_every_route_is_tested_here(self) -> None:
        routes = [route.path for route in make_app().routes if isinstance(route, APIRoute)]
        assert routes == [f"/{{dag_id}}/{route}" for route in ROUTES]

    @pytest.mark.parametrize("route", ROUTES)
    def test_signed_out_users_are_asked_to_sign_in(self, route: str) -> None:
        with TestClient(make_app()) as client:
            response = client.get(url(route))
        assert response.status_code == 401
        assert "Sign in to Airflow" in response.text

    @pytest.mark.parametrize("route", ROUTES)
    def test_every_route_asks_for_access_to_xcoms(
        self, client: TestClient, auth_manager: AuthManager, route: str
    ) -> None:
        client.get(url(route))
        [request] = auth_manager.requests
        assert (request.method, request.access_entity.name) == ("GET", "XCOM")
        assert (request.details.id, request.user) == ("a_dag", auth_manager.user)

    @pytest.mark.parametrize("route", ROUTES)
    def test_users_without_access_see_nothing(
        self,
        client: TestClient,
        auth_manager: AuthManager,
        database: Database,
        bucket: Bucket,
        route: str,
    ) -> None:
        database.push([bucket.put_image(encoded())])
        auth_manager.is_allowed = False
        response = client.get(url(route))
        assert response.status_code == 403
        assert "You are not allowed to see these images." in response.text
        assert "A cat" not in response.text
        assert bucket.reads == 0

    @pytest.mark.parametrize("dag_id", ["other_dag", "a%5Fdag", "a_dag%20", "%7E"])
    def test_the_dag_that_was_authorized_is_shown(
        self, client: TestClient, auth_manager: AuthManager, dag_id: str
    ) -> None:
        response = client.get(f"/{dag_id}/images?run_id=a_run&dag_id=a_dag")
        is_a_dag = auth_manager.requests[-1].details.id == "a_dag"
        assert response.status_code == (200 if is_a_dag else 404)

    @pytest.mark.parametrize("route", IMAGE_ROUTES)
    def test_images_of_another_dag_are_not_served(
        self, client: TestClient, database: Database, bucket: Bucket, route: str
    ) -> None:
        database.push([bucket.put_image(encoded())], dag_id="other_dag")
        assert client.get(url(route)).status_code == 404
        assert client.get(url(route, dag_id="other_dag")).status_code == 200


def filters(page: str) -> dict[str, int]:
    """Return how many images of each kind a page counts."""
    found = re.findall('data-filter="(.*?)".*>([0-9,]+) (?:generated|in progress|failed|not run)<', page)
    return {kind: int(count) for kind, count in found}


class TestPage:
    def test_it_shows_the_cards_of_the_run(self, client: TestClient, database: Database) -> None:
        database.push([entry()])
        database.add_task("later", operator="ModelScopeImageGenerationOperator")
        response = client.get("/a_dag/images?run_id=a_run")
        assert response.headers["Content-Type"] == "text/html; charset=utf-8"
        assert filters(response.text) == {"image": 1, "pending": 1, "failed": 0}
        assert "A cat" in response.text
        assert "Not started" in response.text

    def test_failures_have_links_and_their_error(self, client: TestClient, database: Database) -> None:
        database.add_task(map_index=3, state="failed", operator="ModelScopeImageGenerationOperator")
        error = {"type": "QueueFullError", "message": "The <b>queue</b> is full. Wait."}
        database.push(error, "error", map_index=3)
        page = client.get("/a_dag/images?run_id=a_run").text
        assert filters(page) == {"image": 0, "pending": 1, "failed": 1}
        assert "The &lt;b&gt;queue&lt;/b&gt; is full." in page
        assert '/reference/errors.html#queuefullerror"' in page
        task = "../../dags/a_dag/runs/a_run/tasks/draw/mapped/3"
        assert f'href="{task}"' in page
        assert f'href="{task}/details"' in page

    def test_an_unchanged_page_is_not_sent_again(self, client: TestClient, database: Database) -> None:
        database.push([entry()])
        first = client.get(url("images"))
        [etag] = re.findall('data-etag="&#34;(.*?)&#34;"', first.text)
        headers = {"If-None-Match": f'"{etag}"', "Known-Chunks": ""}
        again = client.get(url("images"), headers=headers)
        assert (again.status_code, again.content) == (304, b"")
        database.push([entry()], map_index=1)
        assert client.get(url("images"), headers=headers).status_code == 200

    def test_an_unchanged_page_is_not_confirmed_to_strangers(
        self, client: TestClient, auth_manager: AuthManager
    ) -> None:
        auth_manager.is_allowed = False
        assert client.get(url("images"), headers={"If-None-Match": "*"}).status_code == 403

    def test_an_update_has_only_what_changed(self, client: TestClient, database: Database) -> None:
        images = [entry(str(number), parameters={"prompt": f"Cat {number}."}) for number in range(50)]
        database.push(images)
        page = client.get(url("images")).text
        chunks = list(dict.fromkeys(re.findall('data-chunk="(.*?)"', page)))
        assert len(chunks) == 3
        update = client.get(url("images"), headers={"Known-Chunks": f"{chunks[0]},{chunks[2]},<x>"}).text
        assert re.findall('data-known="(.*?)"', update) == [chunks[0], chunks[2]]
        assert re.findall("Image of: Cat (\\d+)", update) == [str(number) for number in range(20, 40)]
        assert "<style" not in update
        assert "<x>" not in update

    def test_it_says_that_there_are_no_images(self, client: TestClient, database: Database) -> None:
        database.add_run(run_id="empty")
        for of, sentence in (("", "This run has no images."), ("&task_id=draw", "This task has no images.")):
            assert sentence in client.get(f"/a_dag/images?run_id=empty{of}").text

    def test_it_says_that_there_is_no_such_run(self, client: TestClient) -> None:
        response = client.get(url("images", run_id="other_run"))
        assert response.status_code == 404
        assert "Dag &#39;a_dag&#39; has no run &#39;other_run&#39;." in response.text

    def test_a_runs_id_may_contain_a_plus(self, client: TestClient, database: Database) -> None:
        database.add_run(run_id="manual__2026-11-25T13:47:58+00:00")
        for plus in ("+", "%2B"):
            run_id = f"manual__2026-11-25T13:47:58{plus}00:00"
            assert client.get(f"/a_dag/images?run_id={run_id}").status_code == 200

    @pytest.mark.parametrize(
        ("instance", "path"),
        [
            ("", ""),
            ("&task_id=draw&map_index=-1", "/tasks/draw"),
            ("&task_id=draw&map_index={MAP_INDEX}", "/tasks/draw"),
            ("&task_id=draw&map_index=2", "/tasks/draw/mapped/2"),
            ("&task_id=draw&map_index=2&region_id=ab-1", "/tasks/draw?region_id=ab-1&amp;region_index=2"),
        ],
    )
    def test_it_leads_back_to_airflow(self, client: TestClient, instance: str, path: str) -> None:
        page = client.get(f"/a_dag/images?run_id=a_run{instance}").text
        assert f'<a href="../../dags/a_dag/runs/a_run{path}">' in page

    @pytest.mark.parametrize("is_allowed", [True, False])
    def test_it_runs_only_its_own_scripts(
        self, client: TestClient, auth_manager: AuthManager, is_allowed: bool
    ) -> None:
        auth_manager.is_allowed = is_allowed
        nonces = set()
        for _ in range(2):
            response = client.get(url("images"))
            policy = dict(
                directive.split(" ", 1)
                for directive in response.headers["Content-Security-Policy"].split("; ")
            )
            [nonce] = set(re.findall('<(?:script|style) nonce="(.+?)">', response.text))
            nonces.add(nonce)
            assert policy == {
                "default-src": "'none'",
                "img-src": "'self'",
                "connect-src": "'self'",
                "script-src": f"'nonce-{nonce}'",
                "style-src": f"'nonce-{nonce}'",
                "frame-ancestors": "'self'",
                "base-uri": "'none'",
                "form-action": "'none'",
            }
        assert len(nonces) == 2
        assert response.headers["X-Content-Type-Options"] == "nosniff"

    def test_it_is_not_cached(self, client: TestClient) -> None:
        assert client.get(url("images")).headers["Cache-Control"] == "no-store"

    def test_it_escapes_what_tasks_wrote(self, client: TestClient, database: Database) -> None:
        hostile = "<b>bold</b>\"' onload='x"
        database.push([entry(uri=hostile, sidecar_uri=hostile, parameters={"prompt": hostile})])
        database.push([entry(hostile)], task_id=hostile)
        page = client.get("/a_dag/images?run_id=a_run").text
        assert "&lt;b&gt;bold&lt;/b&gt;&#34;&#39; onload=&#39;x" in page
        assert "<b>" not in page
        assert "onload='" not in page


class TestDagPage:
    def page(self, client: TestClient, **query: str) -> str:
        response = client.get(f"/a_dag/all-images?{urlencode(query)}")
        assert response.status_code == 200
        return response.text

    def test_it_shows_the_images_of_all_runs(self, client: TestClient, database: Database) -> None:
        database.push([entry("1")])
        run_id = "a+b c/d%"
        database.add_run(run_id=run_id)
        database.push([entry("2", sha256="cd" * 32)], run_id=run_id)
        page = self.page(client)
        assert re.findall(' data-open>|<a href="(images.*?)"', page) == [
            "",
            "images?run_id=a%2Bb%20c/d%25",
            "",
            "images?run_id=a_run",
        ]
        assert client.get("/a_dag/images?run_id=a%2Bb%20c/d%25").status_code == 200
        path = "../../dags/a_dag/runs/a%2Bb%20c%2Fd%25"
        assert f'data-framed-href="{path}/plugin/modelscope-images"' in page
        assert f'href="{path}/tasks/draw"' in page
        assert "Older" not in page

    def test_its_form_keeps_what_was_asked_for(self, client: TestClient, database: Database) -> None:
        database.push([entry("1")])
        page = self.page(client, prompt="青瓦 \"'<b>", task="draw", seed="7", run="a_run", model="A/B")
        for text in ("青瓦 &#34;&#39;&lt;b&gt;", "draw", "7", "a_run", "A/B"):
            assert f'value="{text}"' in page
        assert "No image matches." in page
        for name, choice in (("run", "a_run"), ("task", "draw"), ("model", "a/b")):
            assert re.search(f'<datalist id="{name}-choices">\\s+<option value="{choice}">', page)

    def test_it_says_that_there_are_no_images(self, client: TestClient) -> None:
        assert "This Dag has no images." in self.page(client)

    def test_pages_lead_to_each_other(self, client: TestClient, database: Database) -> None:
        database.push([entry(str(n), sha256=f"{n:064x}") for n in range(150)])

        def links(page: str) -> dict[str, str]:
            found = re.findall('<a (?:rel="[a-z]+" )?href="(.*?)">(Newest|Newer|Older)</a>', page)
            return {name: f"/a_dag/{path.replace('&amp;', '&')}" for path, name in found}

        pages = [self.page(client, task="draw")]
        while "Older" in links(pages[-1]):
            pages.append(client.get(links(pages[-1])["Older"]).text)
        assert [page.count(" data-open>") for page in pages] == [60, 60, 30]
        assert [sorted(links(page)) for page in pages] == [
            ["Older"],
            ["Newer", "Newest", "Older"],
            ["Newer", "Newest"],
        ]

        def shown(page: str) -> list[str]:
            return re.findall('data-key="(.*?)"', page)

        back = client.get(links(pages[2])["Newer"]).text
        assert shown(back) == shown(pages[1])
        assert shown(client.get(links(back)["Newer"]).text) == shown(pages[0])
        assert shown(client.get(links(pages[2])["Newest"]).text) == shown(pages[0])

    @pytest.mark.parametrize("moved", [40, 70])
    def test_a_moved_image_is_on_one_page(self, client: TestClient, database: Database, moved: int) -> None:
        images = [entry(str(n), sha256=f"{n:064x}") for n in range(70)]
        for task_id, some in (("draw", images[:moved]), ("paint", images[40:]), ("move", images[:moved])):
            database.push(some, task_id=task_id)
        pages = [self.page(client)]
        while older := re.search('rel="next" href="(.*?)"', pages[-1]):
            pages.append(client.get(f"/a_dag/{older[1]}").text)
        assert [page.count(" data-open>") for page in pages] == [60, 10]
        assert "task_id=draw" not in "".join(pages)

    @pytest.mark.parametrize("name", ["run", "task", "model", "prompt", "seed", "before"])
    @pytest.mark.parametrize(
        "value",
        ["\0", "x" * 10_000, "🦊", "\"'<b>", "%", "_", "-1", "1-1-1-1", "2147483647-1-0-0.x", "\udcff"],
        ids=lambda value: ascii(value[:12]),
    )
    def test_hostile_values_give_a_page(
        self, client: TestClient, database: Database, name: str, value: str
    ) -> None:
        database.push([entry()])
        page = client.get(f"/a_dag/all-images?{name}={quote(value, errors='surrogatepass')}")
        assert page.status_code == 200
        assert "<b>" not in page.text
        if name == "before" and value[0] not in "12":  # no position, so the page is that of the newest images
            assert " data-open>" in page.text

    def test_only_its_own_form_may_be_sent(self, client: TestClient) -> None:
        policy = client.get("/a_dag/all-images").headers["Content-Security-Policy"]
        assert policy.endswith("form-action 'self'")

    def test_users_who_are_signed_out_can_sign_in(self) -> None:
        with TestClient(make_app()) as client:
            assert 'href="../../api/v2/auth/login' in client.get("/a_dag/all-images").text


class TestImage:
    @pytest.fixture
    def content(self, database: Database, bucket: Bucket) -> bytes:
        """An image that the task has stored."""
        content = encoded()
        database.push([bucket.put_image(content)])
        return content

    def test_it_is_served_byte_for_byte(self, client: TestClient, content: bytes) -> None:
        response = client.get(url("image"))
        assert (response.content, response.headers["Content-Type"]) == (content, "image/png")

    def test_its_thumbnail_is_served(self, client: TestClient, content: bytes) -> None:
        response = client.get(url("thumbnail"))
        assert response.headers["Content-Type"] == "image/webp"
        assert Pillow.open(BytesIO(response.content)).size == (400, 250)

    @pytest.mark.parametrize("route", IMAGE_ROUTES)
    def test_only_the_users_own_browser_may_cache_it(
        self, client: TestClient, content: bytes, route: str
    ) -> None:
        headers = client.get(url(route)).headers
        assert headers["Cache-Control"] == "private, no-cache"
        assert headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["X-Content-Type-Options"] == "nosniff"

    @pytest.mark.parametrize("route", IMAGE_ROUTES)
    def test_an_unchanged_image_is_not_sent_again(
        self,
        client: TestClient,
        auth_manager: AuthManager,
        bucket: Bucket,
        content: bytes,
        route: str,
    ) -> None:
        etag = {"If-None-Match": client.get(url(route)).headers["ETag"]}
        reads = bucket.reads
        response = client.get(url(route), headers=etag)
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["Cache-Control"] == "private, no-cache"
        assert bucket.reads == reads
        auth_manager.is_allowed = False
        assert client.get(url(route), headers=etag).status_code == 403

    def test_its_number_selects_it(self, client: TestClient, database: Database, bucket: Bucket) -> None:
        database.push([None, bucket.put_image(encoded(size=(9, 9)))], map_index=3)
        response = client.get(url("image", map_index=3, number=2))
        assert Pillow.open(BytesIO(response.content)).size == (9, 9)

    @needs_loops
    def test_its_region_selects_it(self, client: TestClient, database: Database, bucket: Bucket) -> None:
        regions = [UUID(int=1), UUID(int=2)]
        database.push([entry()], map_index=0, region_id=regions[0])
        database.push([bucket.put_image(encoded(size=(9, 9)))], map_index=0, region_id=regions[1])
        response = client.get(url("image", map_index=0, region_id=regions[1]))
        assert Pillow.open(BytesIO(response.content)).size == (9, 9)
        assert client.get(url("image", map_index=0)).status_code == 404

    @pytest.mark.parametrize("number", ["0", "2", "-1", "1.0", "x", "9" * 400])
    def test_an_unknown_number_has_no_image(self, client: TestClient, content: bytes, number: str) -> None:
        response = client.get(url("image", number=number))
        assert response.status_code == 404
        assert response.text.startswith("This task instance has no image")

    @pytest.mark.parametrize("value", [None, "s3://xcom/42.json", {}, [5], [{"uri": 5}]], ids=str)
    def test_an_xcom_of_another_shape_has_no_image(
        self, client: TestClient, database: Database, value: Any
    ) -> None:
        database.push(value)
        assert client.get(url("image")).status_code == 404

    def test_an_image_that_is_gone_is_explained(
        self, client: TestClient, content: bytes, bucket: Bucket
    ) -> None:
        bucket.rm_file("/bucket/a.png")
        response = client.get(url("image"))
        assert response.status_code == 404
        assert "does not contain this image" in response.text
        assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert response.headers["Cache-Control"] == "no-store"

    @pytest.mark.parametrize("route", IMAGE_ROUTES)
    @pytest.mark.parametrize("replacement", [None, b"other bytes"], ids=["deleted", "overwritten"])
    def test_an_image_that_is_gone_is_not_unchanged(
        self, client: TestClient, content: bytes, bucket: Bucket, route: str, replacement: bytes | None
    ) -> None:
        etag = {"If-None-Match": client.get(url(route)).headers["ETag"]}
        bucket.rm_file("/bucket/a.png")
        if replacement:
            bucket.pipe_file("/bucket/a.png", replacement)
        assert client.get(url(route), headers=etag).status_code == 404
        bucket.pipe_file("/bucket/a.png", content)
        assert client.get(url(route), headers=etag).status_code == 304

    @pytest.mark.parametrize("route", IMAGE_ROUTES)
    def test_an_etag_of_unverified_bytes_is_no_proof(
        self, client: TestClient, database: Database, bucket: Bucket, route: str
    ) -> None:
        """The ETag is known to everyone who may read the XCom; the bytes at its URI may be anything."""
        database.push([bucket.put_image(b"a secret", sha256="ab" * 32)])
        for etag in (f'"{"ab" * 32}"', f'"{"ab" * 32}-400"', "*"):
            assert client.get(url(route), headers={"If-None-Match": etag}).status_code == 404

    @pytest.mark.parametrize("route", IMAGE_ROUTES)
    def test_etags_are_compared_as_http_demands(self, client: TestClient, content: bytes, route: str) -> None:
        etag = client.get(url(route)).headers["ETag"]
        matching = ([etag], [f"W/{etag}"], [f'"a", W/"b,c",{etag} ,"d"'], ['"a"', etag], ["*"], [" * "])
        others = ([""], ['"a"'], ['"*"'], [f'"a{etag[1:]}'], [etag.strip('"')], [f"{etag[:-1]}, {etag[1:]}"])
        for cases, status in ((matching, 304), (others, 200)):
            for lines in cases:
                response = client.get(url(route), headers=[("If-None-Match", line) for line in lines])
                assert response.status_code == status, lines

    def test_an_image_and_its_thumbnail_have_their_own_etags(
        self, client: TestClient, content: bytes
    ) -> None:
        etags = {route: client.get(url(route)).headers["ETag"] for route in IMAGE_ROUTES}
        for route, other in (IMAGE_ROUTES, IMAGE_ROUTES[::-1]):
            headers = {"If-None-Match": etags[other]}
            assert client.get(url(route), headers=headers).status_code == 200


class TestBatch:
    CONTENT = encoded(size=(9, 9))

    @pytest.fixture
    def names(self, database: Database, tmp_path: Path) -> list[str]:
        """A batch of which row 1 and 2 are in segments, 3 failed, and 4 is in none yet; names of segments."""
        return self.write(database, tmp_path)

    def write(self, database: Database, tmp_path: Path, task_id: str = "draw") -> list[str]:
        rows = [result(number, "failed" if number == 3 else "stored") for number in (1, 2, 3, 4)]
        for row in rows:
            if row["image"]:
                content = b"0" if row["row"] == 2 else self.CONTENT  # row 2 has been overwritten
                path = tmp_path / f"{row['key']}.png"
                path.write_bytes(self.CONTENT)
                row["image"] |= stored_at(f"file://{path}", content)
        rows[0]["further_images"] = [rows[0]["image"]]
        folder = StateFolder(tmp_path, task_id=task_id)
        names = folder.write(rows[:1], total=9) + folder.write(rows[1:3], latest=rows[3:], total=9)
        database.push(folder.xcom(9), "batch")
        return names

    def test_its_section_is_shown(self, client: TestClient, names: list[str]) -> None:
        page = client.get(url("images")).text
        assert 'aria-label="Batch of task draw"' in page
        assert "Cat number 4" in page
        assert "Cat number 3" not in page
        failed = client.get(url("images", view="failed")).text
        assert "Cat number 3" in failed
        assert "The prompt was rejected by ModelScope." in failed
        assert "Cat number 4" not in failed

    def test_failed_rows_that_are_known_are_not_sent_again(
        self, client: TestClient, names: list[str]
    ) -> None:
        [chunk] = re.findall(
            '<li data-key="000003" data-chunk="(.*?)"', client.get(url("images", view="failed")).text
        )
        update = client.get(url("images", view="failed"), headers={"Known-Chunks": chunk}).text
        assert f'data-known="{chunk}"' in update
        assert "Cat number 3" not in update

    @pytest.mark.parametrize("route", IMAGE_ROUTES)
    def test_its_images_are_served(self, client: TestClient, names: list[str], route: str) -> None:
        for row in ({"row": "000001", "segment": names[0]}, {"row": "000001"}, {"row": "000004"}):
            response = client.get(url(route, **row))
            assert response.status_code == 200
            assert Pillow.open(BytesIO(response.content)).size == (9, 9)
        assert client.get(url(route, row="000001", number=2, segment=names[0])).status_code == 200

    @pytest.mark.parametrize("route", IMAGE_ROUTES)
    @pytest.mark.parametrize(
        "wrong",
        [
            {"row": "000003"},
            {"row": "000005"},
            {"row": "../000001"},
            {"row": "000001", "number": 3},
            {"row": "000001", "segment": "results-000009-1-0-00000009.jsonl"},
            {"row": "000001", "task_id": "other"},
            {"row": "000001", "map_index": 0},
        ],
        ids=str,
    )
    def test_an_unknown_row_has_no_image(
        self, client: TestClient, names: list[str], route: str, wrong: dict[str, Any]
    ) -> None:
        response = client.get(url(route, **wrong))
        assert response.status_code == 404
        assert "has no image" in response.text

    @pytest.mark.parametrize("route", IMAGE_ROUTES)
    def test_only_the_recorded_bytes_are_shown(
        self, client: TestClient, names: list[str], route: str
    ) -> None:
        response = client.get(url(route, row="000002"))
        assert response.status_code == 404
        assert "does not contain this image" in response.text

    @pytest.mark.parametrize("route", ROUTES)
    def test_the_state_of_another_task_is_not_shown(
        self, client: TestClient, database: Database, tmp_path: Path, route: str
    ) -> None:
        self.write(database, tmp_path, task_id="other")
        response = client.get(url(route, row="000001"))
        assert "Cat number" not in response.text
        assert "images" in route or response.status_code == 404

    def test_it_is_sent_again_only_when_its_state_has_changed(
        self, client: TestClient, database: Database, tmp_path: Path, names: list[str]
    ) -> None:
        [etag] = re.findall('data-etag="(.*?)"', client.get(url("images")).text)
        headers = {"If-None-Match": unescape(etag), "Known-Chunks": ""}
        assert client.get(url("images"), headers=headers).status_code == 304
        StateFolder(tmp_path, task_id="draw").write([], latest=[result(5)], total=9)
        changed = client.get(url("images"), headers=headers)
        assert changed.status_code == 200
        assert "Cat number 5" in changed.text

    def test_its_links_work_without_scripts(self, client: TestClient, names: list[str]) -> None:
        page = client.get(url("images")).text
        link = "images?run_id=a_run&amp;task_id=draw&amp;map_index=-1"
        assert f'<a href="{link}" aria-current="true">Images (3)</a>' in page
        assert f'<a href="{link}&amp;view=failed">Failed rows (1)</a>' in page
        assert '<a href="../../dags/a_dag/runs/a_run/tasks/draw" target="_top">Log</a>' in page

    def test_it_says_what_it_waits_for(
        self, client: TestClient, database: Database, names: list[str]
    ) -> None:
        from airflow.models.taskinstance import TaskInstance

        database.update(TaskInstance, state="queued")
        [progress] = re.findall('(?s)data-part="progress">(.*?)</div>', client.get(url("images")).text)
        assert "Waiting for a worker" in progress

    def test_what_its_state_says_is_escaped(
        self, client: TestClient, database: Database, tmp_path: Path
    ) -> None:
        hostile = "<b>bold</b>\"' onload='x"
        folder = StateFolder(tmp_path)
        error = {"type": hostile, "message": f"{hostile}. {hostile}"}
        rows = [result(1, key=hostile), result(2, "failed", key=hostile, prompt=hostile, error=error)]
        rows[0]["image"]["parameters"]["prompt"] = hostile
        running = [{"key": hostile, "number": 3, "prompt": hostile, "generation_id": hostile}]
        folder.write([], latest=rows, total=3, running=running, stopped_by=hostile)
        database.push(folder.xcom(3) | {"manifest": hostile}, "batch")
        for view in ("images", "failed"):
            page = client.get(url("images", view=view)).text
            assert "&lt;b&gt;bold&lt;/b&gt;" in page
            assert "<b>" not in page
            assert "onload='" not in page


class TestTogether:
    """Several requests at the same time. No store answers before all of them are where they wait."""

    def together(
        self,
        client: TestClient,
        bucket: Bucket,
        urls: list[str],
        is_reached: Callable[[CapacityLimiterStatistics], bool],
    ) -> list[Any]:
        assert client.portal
        bucket.released.clear()
        with ThreadPoolExecutor(len(urls)) as pool:
            responses: list[Future[Any]] = [pool.submit(client.get, one) for one in urls]
            try:
                while not (
                    is_reached(client.portal.call(_limiter().statistics)) or any(map(is_done, responses))
                ):
                    pass
            finally:
                bucket.released.set()
        return [one.result() for one in responses]

    def test_few_images_are_read_at_once(
        self, client: TestClient, database: Database, bucket: Bucket
    ) -> None:
        names = [f"{number}.png" for number in range(THREADS + 2)]
        database.push([bucket.put_image(encoded(), name=name) for name in names])
        urls = [url("image", number=number + 1) for number in range(len(names))]
        reads = []

        def is_reached(threads: CapacityLimiterStatistics) -> bool:
            reads.append(bucket.reads)
            return bucket.reads + threads.tasks_waiting == len(urls)

        responses = self.together(client, bucket, urls, is_reached)
        assert [one.status_code for one in responses] == [200] * len(urls)
        assert max(reads) == THREADS == 4

    @pytest.mark.parametrize("route", IMAGE_ROUTES)
    @pytest.mark.parametrize("facts", [{}, {"sha256": "00" * 32}], ids=["shown", "not shown"])
    def test_an_image_is_read_once_for_all_who_ask(
        self, client: TestClient, database: Database, bucket: Bucket, route: str, facts: dict[str, str]
    ) -> None:
        database.push([bucket.put_image(encoded(), **facts)])

        def is_reached(threads: CapacityLimiterStatistics) -> bool:
            """Whether one reads the image, and the seven others need no thread."""
            is_shared = bucket.descriptions == 8 and threads.borrowed_tokens == bucket.reads == 1
            return is_shared or bucket.reads > 1

        responses = self.together(client, bucket, [url(route)] * 8, is_reached)
        assert {one.status_code for one in responses} == {404 if facts else 200}
        assert len({one.content for one in responses}) == 1
        assert bucket.reads == 1
        client.get(url(route))
        assert bucket.reads == (1 if route == "thumbnail" and not facts else 2)
