"""JSON that tells whether it is still as it was written: a checksum of its values stands among them.

text = seal({"format": 1, "title": "mine"})
unseal(text.encode())
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

CHECKSUM = "checksum"


def seal(values: Mapping[str, Any]) -> str:
    """The values as indented JSON, with their checksum as the last of them. Values are compared as they are read again."""
    checksum = _checksum(json.loads(json.dumps(values)))
    return json.dumps({**values, CHECKSUM: checksum}, indent=1, ensure_ascii=False)


def unseal(text: bytes) -> dict[str, Any]:
    """The values of a sealed text, without the checksum. One from before checksums, which has none, is taken as it is.

    Raises ValueError for what is not a JSON object, or has other values than were written; RecursionError for deep nesting.
    """
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("it is not an object")
    written = values.pop(CHECKSUM, None)
    if written is not None and written != _checksum(values):
        raise ValueError("it has other values than were written, by its checksum")
    return values


def _checksum(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
