"""Figures for print, which take a report as long as its page does, are drawn where a test asks for them."""

import sys

import pytest


@pytest.fixture
def printed_figures() -> None:
    """Asks for a report's figures as PNG and PDF; a test without it finds a few bytes in their place."""


@pytest.fixture(autouse=True)
def _page_alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    report = sys.modules.get("analysis.report.report")
    if report is not None and "printed_figures" not in request.fixturenames:
        for name in ("to_png", "to_pdf"):
            monkeypatch.setattr(report, name, lambda figure: b"not drawn")
