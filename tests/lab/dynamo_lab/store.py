"""File discovery: the directory that workers and frontends share."""

from __future__ import annotations

import json
import pathlib
import urllib.parse
from typing import Any


class FileStore:
    """File discovery: workers and frontends share one directory."""

    kind = "file"

    def __init__(self, root: pathlib.Path):
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def environment(self) -> dict[str, str]:
        return {"DYN_STORE_KV": "file", "DYN_DISCOVERY_BACKEND": "file", "DYN_FILE_KV": str(self.root)}

    def records(self) -> dict[str, Any]:
        """{'v1/instances/ns/comp/ep/id': parsed JSON, ...}; what cannot be parsed is bytes."""
        result: dict[str, Any] = {}
        for path in sorted(self.root.rglob("*")):
            if not path.is_file() or path.name.startswith("."):
                continue
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            key = urllib.parse.unquote(str(path.relative_to(self.root)))
            result[key] = _json_or_bytes(data)
        return result


def _json_or_bytes(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data
