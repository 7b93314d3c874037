"""The connections to object storage that ``docs/how-to/stores.md`` shows."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "stores.md"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A connection, and the scheme of the destinations that it is shown for."""

    conn_id: str
    scheme: str
    connection: str

    @property
    def fields(self) -> dict[str, Any]:
        """The connection's fields, to be changed at will; ``extra`` is always among them."""
        return {"extra": {}, **json.loads(self.connection)}


RECIPES = {
    conn_id: Recipe(conn_id=conn_id.lower(), scheme=scheme, connection=connection)
    for scheme, conn_id, connection in re.findall(
        r"destination=\"(\w+)://[^\n]*\n\n```bash\nexport AIRFLOW_CONN_(\w+)='(.*)'",
        PAGE.read_text(),
    )
}
