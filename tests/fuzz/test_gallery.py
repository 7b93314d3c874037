"""Whatever tasks push, the page of their run is shown, with the images of the other tasks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from hypothesis import given, strategies as st

from tests.support.batches import StateFolder, result
from tests.unit.gallery.conftest import (  # noqa: F401 - fixtures
    auth_manager,
    bucket,
    client,
    database,
    encoded,
    entry,
    needs_gallery,
)

if TYPE_CHECKING:
    from pathlib import Path

    from fastapi.testclient import TestClient

    from tests.unit.gallery.conftest import Bucket, Database

pytestmark = needs_gallery

texts = st.text(st.characters(exclude_categories=()), max_size=20)
words = st.sampled_from(
    [
        "", " ", "\0", "\ud800", "a\udfff", "</script><script>", "{{ 7 * 7 }}", "'\"", "\u202e", "x" * 5000,
        "ab" * 32, "1", "memory://bucket/a.png", "memory://", "file:///", "file:///no/such", "file:///a\0b",
    ]
)  # fmt: skip
numbers = st.sampled_from(
    [10**20, 10**400, -1, 0.5, float("nan"), float("inf"), float("-inf"), 1e308, 2**53, True]
)
leaves = words | words | numbers | texts | st.none() | st.integers() | st.floats()
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | words, inner, max_size=4),
    max_leaves=8,
)
PARAMETERS = (
    "prompt", "negative_prompt", "model", "size", "seed", "steps", "guidance", "image_url", "loras",
    "extra_parameters",
)  # fmt: skip
IMAGE = entry(uri="memory://bucket/a.png", storage_conn_id=None, sidecar_uri="s3://b/a.json")
REQUEST = {"model": "a/b", "submitted_at": 5.0, "prompt": "A cat"}


def with_id(generation_id: object, right: dict[str, Any], name: str, odd: Any) -> dict[str, Any]:
    """Return an object with one value of any type. A page shows each generation once."""
    return {**right, "generation_id": str(generation_id), name: odd}


image_entries = st.builds(with_id, st.uuids(), st.just(IMAGE), st.sampled_from([*IMAGE, "other"]), values)
odd_parameters = st.dictionaries(st.sampled_from(PARAMETERS), values, min_size=1, max_size=3)
odd_images = st.builds(with_id, st.uuids(), st.just(IMAGE), st.just("parameters"), odd_parameters)
requests = st.builds(
    with_id, st.uuids(), st.just(REQUEST), st.sampled_from([*REQUEST, "generation_id", *PARAMETERS]), values
)
images = st.lists(odd_images | image_entries | values, min_size=1, max_size=3)
ODD_JSON = (
    "[" * 20_000, '{"a": ' * 4000, "[" * 900 + "]" * 900, '[{"seed": ' + "9" * 5000 + "}]", "{", "", "NaN",
    '"\\ud800"', '{"a": 1, "a": 2}',
)  # fmt: skip


def nested(depth: int) -> str:
    """Return an image with a parameter of many lists in each other."""
    deep = with_id(depth, IMAGE, "parameters", {"prompt": "?", "loras": "?"})
    return json.dumps([deep]).replace('"?"', "[" * depth + "]" * depth)


odd_json = st.sampled_from([*ODD_JSON, *map(nested, (30, 500, 800, 950))])
xcoms = st.one_of(
    st.tuples(st.just("images"), images.map(json.dumps)),
    st.tuples(st.just("request"), requests.map(json.dumps)),
    st.tuples(st.just("error"), st.builds(dict, type=values, message=values).map(json.dumps)),
    st.tuples(st.sampled_from(["images", "request", "batch", "error"]), values.map(json.dumps) | odd_json),
)
RESULT = result(1)
PROGRESS = {
    "total": 5, "counts": {"stored": 1, "rejected": 1, "failed": 1, "skipped": 0}, "started_at": 1.0,
    "updated_at": 2.0, "spent": 1.0, "per_minute": 5.0, "stopped_by": "credit", "is_finished": False,
    "running": [{"key": "a", "number": 1, "prompt": "A cat", "generation_id": "42", "submitted_at": 1.0}],
    "results": [RESULT],
}  # fmt: skip


def with_odd(right: dict[str, Any], name: str, odd: Any) -> dict[str, Any]:
    """Return an object with one value of any type."""
    return {**right, name: odd}


results = st.builds(with_odd, st.just(RESULT), st.sampled_from([*RESULT, "other"]), values) | st.builds(
    with_odd, st.just(RESULT), st.just("image"), image_entries
)
progresses = st.builds(
    with_odd, st.just(PROGRESS), st.sampled_from([*PROGRESS, "other"]), values
) | st.builds(with_odd, st.just(PROGRESS), st.just("results"), st.lists(results | values, max_size=3))


def test_no_xcom_prevents_a_page(client: TestClient, database: Database, bucket: Bucket) -> None:  # noqa: F811
    good = bucket.put_image(encoded(), parameters={"prompt": "A good cat"})
    tried = 0

    @given(st.lists(xcoms, min_size=1, max_size=6))
    def try_one(odd: list[tuple[str, str]]) -> None:
        nonlocal tried
        tried += 1
        run_id = f"run_{tried}"
        database.add_run(run_id=run_id)
        database.push([good], run_id=run_id, task_id="good")
        for index, (key, text) in enumerate(odd):
            database.push_text(text, key, run_id=run_id, map_index=index)

        def get(route: str, **ids: Any) -> Any:
            return client.get(f"/a_dag/{route}?{urlencode({'run_id': run_id, **ids})}")

        page = get("images")
        assert page.status_code == 200
        assert "A good cat" in page.text
        _, _, shown = page.text.partition("<main")
        assert "<script" not in shown
        assert get("images", task_id="draw").status_code == 200
        assert get("thumbnail", task_id="good").status_code == 200
        for route in ("image", "thumbnail"):
            assert get(route, task_id="draw", map_index=0).status_code in (200, 404)

    try_one()


def test_no_state_of_a_batch_prevents_a_page(
    client: TestClient,  # noqa: F811
    database: Database,  # noqa: F811
    bucket: Bucket,  # noqa: F811
    tmp_path: Path,
) -> None:
    good = bucket.put_image(encoded(), parameters={"prompt": "A good cat"})
    tried = 0

    @given(progresses | values, st.lists((results | values).map(json.dumps) | odd_json, max_size=3))
    def try_one(progress: Any, lines: list[str]) -> None:
        nonlocal tried
        tried += 1
        run_id = f"run_{tried}"
        database.add_run(run_id=run_id)
        database.push([good], run_id=run_id, task_id="good")
        database.add_task(run_id=run_id, state="running", operator="ModelScopeImageBatchOperator")
        folder = StateFolder(tmp_path / run_id, run_id=run_id)
        [name] = folder.write([RESULT], total=5)
        (folder.path / "running.json").write_text(json.dumps({"modelscope_batch": progress}))
        (folder.path / name).write_bytes("\n".join(lines).encode(errors="surrogatepass"))
        database.push(folder.xcom(5), "batch", run_id=run_id)

        def get(route: str, **ids: Any) -> Any:
            return client.get(f"/a_dag/{route}?{urlencode({'run_id': run_id, **ids})}")

        page = get("images")
        assert page.status_code == 200
        assert "A good cat" in page.text
        for view in ("images", "failed"):
            page = get("images", task_id="draw", view=view, up_to=1)
            assert page.status_code == 200
            _, _, shown = page.text.partition("<main")
            assert "<script" not in shown
        for row in ({"row": "000001"}, {"row": "000001", "segment": name}, {"row": "a"}):
            assert get("thumbnail", task_id="draw", **row).status_code in (200, 404)

    try_one()
