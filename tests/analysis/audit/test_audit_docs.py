"""docs/audit.md: its thresholds are the code's, its Python runs, its names and kinds are those that there are."""

import random
import re
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from analysis.audit.findings import KINDS, THRESHOLDS
from sweep import cli
from tests.analysis.audit.planted import planted

PAGE = (Path(__file__).parents[3] / "docs" / "audit.md").read_text()


def percent(share: float | None) -> str:
    return "" if share is None else "never" if share == float("inf") else f"{100 * share:g}%"


def test_the_thresholds_are_the_codes() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (.*?) \| (.*?) \| (.*?) \|(.*?)\|$", PAGE, re.MULTILINE)
    listed = {name: (figure, look, act, excess.strip()) for name, figure, look, act, excess in rows}
    assert listed == {
        name: (each.figure, percent(each.look), percent(each.act), percent(each.reference[1] if each.reference else None))
        for name, each in THRESHOLDS.items()
    }
    assert set(KINDS) == {*listed, "plants"}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    made, original = planted("english", 900), planted("english", 900, seed=2, is_clean=True)
    for name, table in (("pool", made.table), ("test", made.test), ("original", original.table)):
        pq.write_table(table, f"{name}.parquet")
    return tmp_path


def test_the_python_runs(files: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    pool, keep, found = names["pool"], names["keep"], names["found"]
    assert isinstance(pool, pd.DataFrame) and isinstance(keep, pd.DataFrame) and len(pool) - len(keep) == 45
    for name in re.findall(r"found\.([a-z_]+_frame)\(\)", code):
        assert len(getattr(found, name)().columns) > 3
    assert len(found.heuristics_frame()) == 6  # type: ignore[attr-defined]
    frame = found.findings_frame()  # type: ignore[attr-defined]
    assert list(frame.columns[:7]) == ["level", "kind", "name", "verdict", "value", "low", "high"]
    assert frame["level"].iloc[0] == "act" and "plants lexical overlap by words" in frame["verdict"].tolist()
    html = found._repr_html_()  # type: ignore[attr-defined]
    assert html.startswith("<p><b>Not fit as it is: the data gives away") and html.count("<tr>") == len(frame) + 1


def test_the_commands_run(files: Path) -> None:
    commands = re.findall(r"^blindsweep (audit .*)$", PAGE, re.MULTILINE)
    assert len(commands) == 3
    codes = [CliRunner().invoke(cli.app, command.split()).exit_code for command in commands]
    assert (
        sorted(codes) == [0, 0, 3]
        and (files / "repaired.parquet").is_file()
        and (files / "audit-pool" / "audit.html").is_file()
    )


def test_the_kinds_of_rows_are_listed(files: Path) -> None:
    from analysis.audit import AuditSettings, audit

    rows = pq.read_table("pool.parquet").to_pylist()
    source = random.Random(0)
    rows += [{**row, "hypothesis": row["hypothesis"][:-1] + " more.", "label": "neutral"} for row in source.sample(rows, 80)]
    settings = AuditSettings(
        tests={"test": "test.parquet"}, generator_training=pa.Table.from_pylist(source.sample(rows, 200)), processes=1
    )
    found = set(audit(pa.Table.from_pylist(rows), settings).rows_frame()["kind"])
    listed = set(re.findall(r"`([a-z_]+)`", PAGE[PAGE.index("| kind | what |") : PAGE.index("**Repair**")]))
    assert found <= listed and {"contradiction", "contrast_pair", "heuristic", "exact_leak", "near_duplicate"} <= found
