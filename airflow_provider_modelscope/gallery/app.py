"""The gallery's routes. Each asks Airflow whether this person may read the XComs of that Dag.

An image is named by its task instance and its number, never by an address: what is served is what that task's
XCom names.
"""

from __future__ import annotations

import secrets
import time
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from airflow import __version__ as AIRFLOW_VERSION
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import requires_access_dag
from anyio import CapacityLimiter, to_thread
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from jinja2 import Environment, PackageLoader, select_autoescape

from airflow_provider_modelscope.gallery.cards import StoredPicture, cards_of
from airflow_provider_modelscope.gallery.files import SIDE, NotShownError, small, whole
from airflow_provider_modelscope.gallery.metadata import read_images, read_run
from airflow_provider_modelscope.links import image_query

if TYPE_CHECKING:
    from collections.abc import Callable

THREADS = 4  # of the API server's forty: pictures must not hold up the others' pages

_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
# Asked for anew each time, since rights may be taken away; what has not changed is not sent again.
_PICTURE_HEADERS = {
    **_HEADERS,
    "Cache-Control": "private, no-cache",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_SENTENCES = {
    401: "Sign in to Airflow to see these images.",
    403: "You may not see these images: that takes the permission to read the XComs of this Dag.",
}


@cache
def make_app() -> FastAPI:
    """Return the app that Airflow mounts; there is one in each process."""
    may_read = Depends(requires_access_dag(method="GET", access_entity=DagAccessEntity.XCOM))
    app = FastAPI(
        title="ModelScope images", docs_url=None, redoc_url=None, openapi_url=None, dependencies=[may_read]
    )
    app.add_api_route("/images", images)
    app.add_api_route("/image", image)
    app.add_api_route("/thumbnail", thumbnail)
    app.add_exception_handler(HTTPException, _refused)
    return app


async def images(request: Request, dag_id: str = "") -> Response:
    """Show the images of a Dag run, or of one of its task instances."""
    return await to_thread.run_sync(_images, request, dag_id)


def _images(request: Request, dag_id: str) -> Response:
    run_id, task_id, map_index = _named(request, "run_id"), _named(request, "task_id"), _map_index(request)
    run = read_run(dag_id, run_id)
    if run is None:
        raise HTTPException(404, f"Dag {dag_id!r} has no run {run_id!r}.")
    groups = cards_of(run, task_id=task_id or None, map_index=map_index)
    cards = [card for group in groups.values() for card in group]
    return _page(
        groups=groups,
        nothing="This task has no images." if task_id else "This run has no images.",
        place=_place(dag_id, run_id, task_id, map_index),
        place_name=" / ".join(filter(None, (dag_id, run_id, task_id))),
        stored=sum(1 for card in cards if card.number),
        coming=sum(1 for card in cards if not card.is_over),
        missing=sum(1 for card in cards if card.is_over and not card.number),
        is_live=not run.is_over,
        query=lambda card: image_query(dag_id, run_id, card.task_id, card.map_index, card.number),
        side=SIDE,
    )


async def image(request: Request, dag_id: str = "") -> Response:
    """Serve an image as it is stored."""
    picture = await _picture(request, dag_id)

    def content() -> tuple[bytes, str]:
        return whole(picture)

    return await _serve(request, content, etag=f'"{picture.sha256}"')


async def thumbnail(request: Request, dag_id: str = "") -> Response:
    """Serve an image made small."""
    picture = await _picture(request, dag_id)

    def content() -> tuple[bytes, str]:
        return small(picture, now=time.time()), "image/webp"

    return await _serve(request, content, etag=f'"{picture.sha256}-{SIDE}"')


async def _picture(request: Request, dag_id: str) -> StoredPicture:
    """Return the image that the query names, as the XCom of that task instance tells of it."""
    run_id, task_id, number = (_named(request, name) for name in ("run_id", "task_id", "number"))
    pushed = await to_thread.run_sync(read_images, dag_id, run_id, task_id, _map_index(request))
    picture = StoredPicture.of(pushed, _integer(number or "1"))
    if picture is None:
        raise HTTPException(404, "No task has told of such an image.")
    return picture


async def _serve(request: Request, content: Callable[[], tuple[bytes, str]], *, etag: str) -> Response:
    headers = {**_PICTURE_HEADERS, "ETag": etag}
    if etag in request.headers.get("If-None-Match", ""):
        return Response(status_code=304, headers=headers)
    try:
        body, content_type = await to_thread.run_sync(content, limiter=_limiter())
    except NotShownError as error:
        raise HTTPException(404, str(error)) from error
    return Response(body, media_type=content_type, headers=headers)


async def _refused(request: Request, error: Exception) -> Response:
    """Say why there is nothing to see: as a page, or as text in the place of a picture."""
    if not isinstance(error, HTTPException):
        raise error
    is_nobody = error.status_code == 401 or error.detail == "Invalid JWT token"  # which comes as 403
    sentence = _SENTENCES.get(401 if is_nobody else error.status_code, str(error.detail))
    if request.url.path.endswith("/images"):
        sign_in = _sign_in(request) if is_nobody else None
        return _page(nothing=sentence, sign_in=sign_in, status_code=error.status_code)
    return Response(
        sentence,
        status_code=error.status_code,
        media_type="text/plain; charset=utf-8",
        headers={**_HEADERS, "Cache-Control": "no-store"},
    )


def _sign_in(request: Request) -> str:
    """Return where Airflow asks for the login, from where it leads back."""
    asked = quote(f"{request.url.path}?{request.url.query}", safe="")
    if AIRFLOW_VERSION.startswith("3.1."):
        asked = quote(asked, safe="")  # it puts it into another address as it is
    return f"../api/v2/auth/login?next={asked}"


def _page(*, status_code: int = 200, **shown: Any) -> Response:
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; img-src 'self'; connect-src 'self'; script-src 'nonce-{nonce}'; "
        f"style-src 'nonce-{nonce}'; frame-ancestors 'self'; base-uri 'none'; form-action 'none'"
    )
    return Response(
        _template().render(nonce=nonce, **shown),
        status_code=status_code,
        media_type="text/html; charset=utf-8",
        headers={**_HEADERS, "Cache-Control": "no-store", "Content-Security-Policy": policy},
    )


@cache
def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("airflow_provider_modelscope", "gallery"),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    own = files("airflow_provider_modelscope") / "gallery"
    return environment.get_template(
        "page.html", globals={name: (own / f"page.{name}").read_text() for name in ("css", "js")}
    )


@cache
def _limiter() -> CapacityLimiter:
    return CapacityLimiter(THREADS)


def _place(dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    """Return the page of Airflow's UI that these images belong to, from here."""
    run = f"../dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}"
    mapped = f"/mapped/{map_index}" if map_index >= 0 else ""
    return f"{run}/tasks/{quote(task_id, safe='')}{mapped}" if task_id else run


def _named(request: Request, name: str) -> str:
    """Return a value of the query, "" where there is none.

    Airflow 3.1 fills in a run's id as it is, and the + of its time zone would be read as a space. Never for
    the Dag's id: that has to be the one that was authorized.
    """
    for pair in request.url.query.split("&"):
        key, _, value = pair.partition("=")
        if key == name:
            text = unquote(value)
            return "" if "\0" in text else text  # nothing has such a name, and PostgreSQL takes none
    return ""


def _map_index(request: Request) -> int:
    """Return which of a mapped task's instances is asked for; Airflow leaves the braces of other tasks."""
    return _integer(_named(request, "map_index"), otherwise=-1)


def _integer(text: str, *, otherwise: int = 0) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else otherwise
