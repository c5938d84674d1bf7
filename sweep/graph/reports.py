"""What is known of a study's report in the store without reading it: which artifacts it is of, and its answer."""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.storage import fetch, join, read_text
from sweep.graph.identity import SHORT
from sweep.graph.records import Store, Study

REPORT_OF = "study.json"
"""The file beside a report that says what it is of."""


@dataclass(frozen=True)
class StoredReport:
    """A report that lies in its study's place in the store, and its answer, as `analysis.verdicts.answer` says it."""

    uri: str
    said: str
    command: str

    @contextlib.contextmanager
    def files(self, store: Store, endings: tuple[str, ...]) -> Iterator[Path]:
        """A local folder with its files of these endings, at least."""
        if store.is_local:
            yield Path(self.uri)
            return
        with tempfile.TemporaryDirectory(prefix="blindsweep-") as folder:
            for name in store.names(self.uri):
                if name.endswith(endings):
                    Path(folder, name).write_bytes(Path(fetch(join(self.uri, name))).read_bytes())
            yield Path(folder)


def report_folder(store: Store, study: str) -> str:
    """Where a study's report lies in a store."""
    return join(store.uri, "reports", study)


def report_of(study: Study) -> dict[str, object]:
    """What a report is of: its artifacts, built or not, as an id, and the parameters that led to them."""
    fingerprints = "\n".join(sorted(step.fingerprint for step in study.steps))
    return {
        "study": study.experiment,
        "id": hashlib.sha256(fingerprints.encode()).hexdigest()[:SHORT],
        "parameters": dict(study.parameters),
    }


def read_report_of(folder: str) -> Mapping[str, Any]:
    """What the report in a folder says that it is of; nothing where it does not."""
    try:
        found = json.loads(read_text(join(folder, REPORT_OF)) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def stored_report(store: Store, study: Study) -> StoredReport | None:
    """The report in a study's place if it is of the study as it is now, None otherwise."""
    folder = report_folder(store, study.experiment)
    values = read_report_of(folder)
    answer = values.get("answer", {})
    if values.get("id") != report_of(study)["id"] or not isinstance(answer, dict):
        return None
    return StoredReport(folder, str(answer.get("said", "")), str(answer.get("command", "")))
