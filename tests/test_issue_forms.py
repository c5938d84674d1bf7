"""The forms that an issue begins with are what GitHub takes for one, and ask for commands that there are."""

import re
from pathlib import Path

import pytest
import typer.main
import yaml

from sweep import cli

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".github" / "ISSUE_TEMPLATE"
# A source distribution has none.
FORMS = [path for path in sorted(FOLDER.glob("*.yml")) if path.name != "config.yml"]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_a_form_is_one(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert set(form) == {"name", "description", "labels", "body"}
    assert len({part["id"] for part in form["body"]}) == len(form["body"])
    for part in form["body"]:
        assert part["type"] in ("textarea", "input") and part["attributes"]["label"]
        assert set(part["attributes"]) <= {"label", "description", "render"} and set(part) <= {
            "type",
            "id",
            "attributes",
            "validations",
        }
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    assert set(re.findall(r"`blindsweep (\w+)", path.read_text())) == {"doctor"} <= set(commands)


def test_the_page_on_security_is_where_the_policy_says() -> None:
    (link,) = re.findall(r"\]\((.*?)\)", (ROOT / "SECURITY.md").read_text())
    assert (ROOT / link).is_file()
