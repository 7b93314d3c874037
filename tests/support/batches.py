"""The state of a batch on disk, as the operator leaves it, for tests of the gallery."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from airflow_provider_modelscope.manifest import STATUSES, Segment
from airflow_provider_modelscope.xcoms import STATE_FOLDER, name_of

if TYPE_CHECKING:
    from pathlib import Path

ROWS_IN_SEGMENT = 50


def result(number: int, status: str = "stored", **facts: Any) -> dict[str, Any]:
    """Return the result of a row as JSON."""
    is_stored = status == "stored"
    prompt = f"Cat number {number}"
    image = {
        "uri": f"file:///nowhere/{number:06}.png",
        "storage_conn_id": None,
        "sha256": hashlib.sha256(str(number).encode()).hexdigest(),
        "size_bytes": 5,
        "width": 64,
        "height": 32,
        "generation_id": str(number),
        "model": "a/b",
        "parameters": {"model": "a/b", "prompt": prompt, "seed": number},
    }
    message = "The prompt was rejected by ModelScope. Change the prompt, then clear the task."
    return {
        "key": f"{number:06}",
        "row": number,
        "status": status,
        "fingerprint": "ab12",
        "image": image if is_stored else None,
        "further_images": [],
        "model": "a/b",
        "asked_model": None,
        "generation_id": str(number),
        "credit": 0.5,
        "error": None
        if is_stored
        else {"type": "GenerationRejectedError", "message": message, "request_id": "r-1"},
        "prompt": prompt,
        "data": {"sku": number},
        "finished_at": 1790000000.0 + number,
        "is_final": True,
        **facts,
    }


def stored_at(uri: str, content: bytes) -> dict[str, Any]:
    """Return the fields of a result's image that say where its bytes are."""
    return {"uri": uri, "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}


class StateFolder:
    """The state of one task instance, in the folder of its images.

    :param folder: Where the images are.
    """

    def __init__(
        self,
        folder: Path,
        *,
        dag_id: str = "a_dag",
        run_id: str = "a_run",
        task_id: str = "draw",
        map_index: int = -1,
    ) -> None:
        self.images = folder
        self.path = folder / STATE_FOLDER / name_of(dag_id, run_id, task_id, map_index)
        self._sequence = 0
        self._statuses: dict[str, str] = {}

    def xcom(self, total: int) -> dict[str, Any]:
        """Return the XCom ``batch``."""
        return {
            "state": f"file://{self.path}/",
            "storage_conn_id": None,
            "manifest": f"file://{self.images}/manifest.jsonl",
            "total": total,
        }

    def write(
        self,
        results: list[dict[str, Any]],
        *,
        total: int,
        latest: list[dict[str, Any]] | None = None,
        **progress: Any,
    ) -> list[str]:
        """Add results in segments, and those that are in no segment yet; return the names of the segments."""
        self.path.mkdir(parents=True, exist_ok=True)
        names = []
        for start in range(0, len(results), ROWS_IN_SEGMENT):
            rows = results[start : start + ROWS_IN_SEGMENT]
            self._sequence += 1
            without_image = sum(row["status"] != "stored" for row in rows)
            segment = Segment(
                sequence=self._sequence,
                count=len(rows),
                without_image=without_image,
                token=f"{self._sequence:08x}",
            )
            (self.path / segment.name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
            names.append(segment.name)
        self._statuses |= {row["key"]: row["status"] for row in [*results, *(latest or [])]}
        counts = {status: list(self._statuses.values()).count(status) for status in STATUSES}
        document = {
            "total": total,
            "counts": counts,
            "started_at": 1790000000.0,
            "updated_at": 1790000100.0,
            "spent": 12.5,
            "per_minute": None,
            "stopped_by": None,
            "is_finished": False,
            "running": [],
            "results": latest or [],
            **progress,
        }
        temporary = self.path / "running.tmp"
        temporary.write_text(json.dumps({"modelscope_batch": document}))
        temporary.replace(self.path / "running.json")
        return names
