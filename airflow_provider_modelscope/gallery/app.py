"""The gallery's routes. Each asks Airflow whether the user may read the XComs of the Dag.

The query names an image by its task instance and number, never by its URI, so only images in that task's XCom
can be served, or in the state of its batch.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import time
from collections import Counter
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, metadata
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote, urlencode

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import requires_access_dag
from anyio import CapacityLimiter, to_thread
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from airflow_provider_modelscope.compat import AIRFLOW_VERSION
from airflow_provider_modelscope.gallery.batch_state import StateUnavailableError, find_result, location_of
from airflow_provider_modelscope.gallery.batches import batches_of, versions_of
from airflow_provider_modelscope.gallery.cards import cards_of, chunks_of
from airflow_provider_modelscope.gallery.dag_images import MAX_TRAIL, Position, Wanted, find_images, trail_of
from airflow_provider_modelscope.gallery.dag_metadata import (
    read_choices,
    read_newer,
    read_params,
    read_xcoms,
)
from airflow_provider_modelscope.gallery.files import (
    THUMBNAIL_SIDE,
    FoundObject,
    ImageUnavailableError,
    find_object,
    make_thumbnail,
    read_image,
    verify,
)
from airflow_provider_modelscope.gallery.metadata import read_run, read_version, read_xcom
from airflow_provider_modelscope.gallery.status import TRIGGERER_TIMEOUT
from airflow_provider_modelscope.links import RUN_TAB, Instance
from airflow_provider_modelscope.xcoms import BATCH, IMAGES, StoredImage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from airflow_provider_modelscope.gallery.batches import View

T = TypeVar("T")

THREADS = 4  # for images. The API server's other pages share 40 others.

_running: dict[tuple[Any, FoundObject], asyncio.Future[Any]] = {}

_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
# Browsers revalidate each time, because permissions can be revoked; unchanged images are not sent again.
_IMAGE_HEADERS = {
    **_HEADERS,
    "Cache-Control": "private, no-cache",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_MESSAGES = {
    401: "Sign in to Airflow to see these images.",
    403: "You are not allowed to see these images. You need permission to read the XComs of this Dag.",
}


@cache
def make_app() -> FastAPI:
    """Return the app that Airflow mounts, one per process."""
    may_read = Depends(requires_access_dag(method="GET", access_entity=DagAccessEntity.XCOM))
    app = FastAPI(
        title="ModelScope images", docs_url=None, redoc_url=None, openapi_url=None, dependencies=[may_read]
    )
    # In the path, because that is the only place where Airflow 3.1.6 and older find the Dag to authorize.
    app.add_api_route("/{dag_id}/images", images)
    app.add_api_route("/{dag_id}/all-images", all_images)
    app.add_api_route("/{dag_id}/image", image)
    app.add_api_route("/{dag_id}/thumbnail", thumbnail)
    app.add_exception_handler(HTTPException, _error_response)
    return app


async def images(request: Request, dag_id: str) -> Response:
    """Show the images of a Dag run or of one of its task instances."""
    return await to_thread.run_sync(_images, request, dag_id)


def _images(request: Request, dag_id: str) -> Response:
    run_id, instance = _query_value(request, "run_id"), _instance(request)
    only = instance if instance.task_id else None
    now = time.time()
    not_found = HTTPException(404, f"Dag {dag_id!r} has no run {run_id!r}.")
    found = read_version(dag_id, run_id, alive_since=now - TRIGGERER_TIMEOUT)
    if found is None:
        raise not_found
    version, batch_xcoms = found
    states = "".join(versions_of(dag_id, run_id, batch_xcoms, only))
    etag = f'"{hashlib.sha256(f"{version}{states}".encode()).hexdigest()[:16]}"'
    if _has_etag(request, etag):
        return Response(status_code=304, headers={**_HEADERS, "Cache-Control": "no-store", "ETag": etag})
    run = read_run(dag_id, run_id)
    if run is None:  # it has been deleted since
        raise not_found
    groups = cards_of(run, only=only, now=now)
    cards = [card for group in groups.values() for card in group]
    shown = {
        task_id: [card for card in group if card.kind in ("image", "pending")]
        for task_id, group in groups.items()
    }
    view: View = "failed" if _query_value(request, "view") == "failed" else "images"
    up_to = _integer(_query_value(request, "up_to"))
    batches = batches_of(run, only=only, view=view, up_to=up_to, now=now)
    return _page(
        "run.html",
        singles=[group[0] for group in shown.values() if len(group) == 1],
        groups={task_id: group for task_id, group in shown.items() if len(group) > 1},
        rows=[card for card in cards if card.kind in ("failed", "idle")],
        batches=batches,
        counts=Counter(card.kind for card in cards),
        message="This task has no images." if instance.task_id else "This run has no images.",
        dag_id=dag_id,
        run_id=run_id,
        instance=only,
        path_of=_airflow_path,
        errors_page=_errors_page(),
        is_live=not run.is_finished,
        etag=etag,
        chunks_of=chunks_of,
        known=(request.headers.get("Known-Chunks") or "").split(","),
        is_update="Known-Chunks" in request.headers,
        now=now,
        thumbnail_side=THUMBNAIL_SIDE,
    )


async def all_images(request: Request, dag_id: str) -> Response:
    """Show the stored images of all runs of a Dag, or those that a search finds."""
    return await to_thread.run_sync(_all_images, request, dag_id)


def _all_images(request: Request, dag_id: str) -> Response:
    given = request.query_params
    wanted = Wanted(**{name: given.get(name, "").strip() for name in vars(Wanted())})
    trail = trail_of(given.get("before", ""))  # from the newest page to this one
    start = trail[-1] if trail else Position()
    shown = read_newer(dag_id, wanted, start) if trail else []
    page = find_images(partial(read_xcoms, dag_id, wanted), wanted, start, dag_id=dag_id, shown=shown)
    runs, tasks = read_choices(dag_id)

    def path_to(*positions: Position) -> str:
        before = {"before": ".".join(map(str, positions[-MAX_TRAIL:]))} if positions else {}
        return f"all-images?{urlencode(wanted.given | before)}"

    return _page(
        "dag.html",
        allows_forms=True,
        page=page,
        wanted=wanted,
        newest=path_to() if trail else "",
        newer=path_to(*trail[:-1]),
        older=path_to(*trail, page.older) if page.older else "",
        runs=[(run.run_id, f"{run.date} UTC") for run in runs],
        tasks=[(task_id, "") for task_id in tasks],
        models=[(model, "") for model in page.models],
        params=read_params(dag_id),
        dag_id=dag_id,
        run_tab=RUN_TAB,
        path_of=_airflow_path,
        thumbnail_side=THUMBNAIL_SIDE,
        now=time.time(),
    )


async def image(request: Request, dag_id: str) -> Response:
    """Serve a stored image, byte for byte."""
    stored = await _stored_image(request, dag_id)
    return await _serve(request, stored, read_image, etag=f'"{stored.sha256}"')


async def thumbnail(request: Request, dag_id: str) -> Response:
    """Serve the thumbnail of a stored image."""
    stored = await _stored_image(request, dag_id)
    return await _serve(request, stored, make_thumbnail, etag=f'"{stored.sha256}-{THUMBNAIL_SIDE}"')


async def _stored_image(request: Request, dag_id: str) -> StoredImage:
    """Return the image that the query names, as that task instance's XCom or batch describes it."""
    number = _integer(_query_value(request, "number") or "1")
    row = _query_value(request, "row")
    images = await to_thread.run_sync(_images_of_row if row else _images_of_task, request, dag_id)
    stored = images[number - 1] if 0 < number <= len(images) else None
    if stored is None:
        of_row = f" of row {row!r}" if row else ""
        raise HTTPException(404, f"This task instance has no image {number}{of_row}.")
    return stored


def _images_of_task(request: Request, dag_id: str) -> Sequence[StoredImage | None]:
    pushed = read_xcom(dag_id, _query_value(request, "run_id"), _instance(request), IMAGES)
    return [StoredImage.from_json(entry) for entry in pushed] if isinstance(pushed, list) else []


def _images_of_row(request: Request, dag_id: str) -> Sequence[StoredImage | None]:
    run_id, instance = _query_value(request, "run_id"), _instance(request)
    location = location_of(read_xcom(dag_id, run_id, instance, BATCH), dag_id, run_id, instance)
    if location is None:
        return []
    try:
        result = find_result(location, _query_value(request, "row"), _query_value(request, "segment"))
    except StateUnavailableError as error:
        raise HTTPException(404, str(error)) from error
    return result.images if result else []


async def _serve(
    request: Request,
    stored: StoredImage,
    content_of: Callable[[FoundObject], tuple[bytes, str]],
    *,
    etag: str,
) -> Response:
    headers = {**_IMAGE_HEADERS, "ETag": etag}
    try:
        found = await to_thread.run_sync(find_object, stored, limiter=_limiter())
        if _has_etag(request, etag):
            await _once(verify, found)
            return Response(status_code=304, headers=headers)
        body, content_type = await _once(content_of, found)
    except ImageUnavailableError as error:
        raise HTTPException(404, str(error)) from error
    return Response(body, media_type=content_type, headers=headers)


def _has_etag(request: Request, etag: str) -> bool:
    """Whether the browser names the ETag of what it has, by HTTP's rules for ``If-None-Match``."""
    known = ",".join(request.headers.getlist("If-None-Match"))
    return known.strip() == "*" or etag in re.findall('"[^"]*"', known)  # W/ makes no difference


async def _once(function: Callable[[FoundObject], T], found: FoundObject) -> T:
    """Call a function in a thread. Requests that come meanwhile for the same get the same result or error.

    They need no thread while they wait. The call goes on if the first of them is cancelled.
    """
    key = (function, found)
    if key not in _running:
        _running[key] = asyncio.ensure_future(to_thread.run_sync(function, found, limiter=_limiter()))
        _running[key].add_done_callback(lambda _: _running.pop(key))
    result: T = await asyncio.shield(_running[key])
    return result


async def _error_response(request: Request, error: Exception) -> Response:
    """Explain an error: as a page for the gallery, as plain text for an image."""
    if not isinstance(error, HTTPException):
        raise error
    is_signed_out = error.status_code == 401 or error.detail == "Invalid JWT token"  # Airflow sends 403
    message = _MESSAGES.get(401 if is_signed_out else error.status_code, str(error.detail))
    if request.url.path.endswith(("/images", "/all-images")):
        sign_in = _sign_in_path(request) if is_signed_out else None
        return _page(
            "error.html", message=message, sign_in=sign_in, now=time.time(), status_code=error.status_code
        )
    return Response(
        message,
        status_code=error.status_code,
        media_type="text/plain; charset=utf-8",
        headers={**_HEADERS, "Cache-Control": "no-store"},
    )


def _sign_in_path(request: Request) -> str:
    """Return the path of Airflow's login, which leads back to this request."""
    back = quote(f"{request.url.path}?{request.url.query}", safe="")
    if AIRFLOW_VERSION == (3, 1):
        back = quote(back, safe="")  # Airflow 3.1 puts it into a redirect without encoding it
    return f"../../api/v2/auth/login?next={back}"


def _page(
    template: str,
    *,
    status_code: int = 200,
    is_update: bool = False,
    allows_forms: bool = False,
    **values: Any,
) -> Response:
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; img-src 'self'; connect-src 'self'; script-src 'nonce-{nonce}'; "
        f"style-src 'nonce-{nonce}'; frame-ancestors 'self'; base-uri 'none'; "
        f"form-action '{'self' if allows_forms else 'none'}'"
    )
    return Response(
        _templates().get_template(template).render(nonce=nonce, is_update=is_update, **values),
        status_code=status_code,
        media_type="text/html; charset=utf-8",
        headers={**_HEADERS, "Cache-Control": "no-store", "Content-Security-Policy": policy},
    )


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("airflow_provider_modelscope", "gallery"),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    folder = files("airflow_provider_modelscope") / "gallery"
    environment.globals |= {name: (folder / f"page.{name}").read_text() for name in ("css", "js")}
    return environment


@cache
def _limiter() -> CapacityLimiter:
    return CapacityLimiter(THREADS)


@cache
def _errors_page() -> str:
    """Return the address of the documentation of the errors, or an empty text if it is not known."""
    try:
        addresses = metadata("airflow-provider-modelscope").get_all("Project-URL") or []
    except PackageNotFoundError:
        return ""
    known = dict(address.split(", ", maxsplit=1) for address in addresses)
    return f"{known['Documentation']}/reference/errors.html" if "Documentation" in known else ""


def _airflow_path(dag_id: str, run_id: str = "", instance: Instance | None = None, tab: str = "") -> str:
    """Return the path of a Dag, a run or a task instance in Airflow's UI, relative to the gallery.

    :param tab: A tab of the page of a task instance, such as ``details``. The first is its log.
    """
    path = f"../../dags/{quote(dag_id, safe='')}"
    if run_id:
        path += f"/runs/{quote(run_id, safe='')}"
    if instance is None:
        return path
    index, region = instance.map_index, quote(instance.region_id, safe="")
    tab = f"/{tab}" if tab else ""
    mapped = f"/mapped/{index}" if index >= 0 else ""
    which = f"{tab}?region_id={region}&region_index={index}" if region else f"{mapped}{tab}"
    return f"{path}/tasks/{quote(instance.task_id, safe='')}{which}"


def _query_value(request: Request, name: str) -> str:
    """Return a value of the query, or "" if it has none.

    Airflow 3.1 does not encode a run's id, so the + of its time zone must not be decoded to a space.
    """
    for pair in request.url.query.split("&"):
        key, _, value = pair.partition("=")
        if key == name:
            text = unquote(value)
            return "" if "\0" in text else text  # no id contains NUL, and PostgreSQL rejects it
    return ""


def _instance(request: Request) -> Instance:
    """Return the task instance of the query. If it is not mapped, Airflow sends "{MAP_INDEX}"."""
    index = _integer(_query_value(request, "map_index"), otherwise=-1)
    return Instance.make(_query_value(request, "task_id"), index, _query_value(request, "region_id"))


def _integer(text: str, *, otherwise: int = 0) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else otherwise
