"""Figures for print, which take a report as long as its page does, are drawn where a test asks for them."""

import pytest


@pytest.fixture
def printed_figures() -> None:
    """Asks for a report's figures as PNG and PDF; a test without it finds a few bytes in their place."""


@pytest.fixture(autouse=True)
def _page_alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "printed_figures" not in request.fixturenames:
        for name in ("to_png", "to_pdf"):
            monkeypatch.setattr(f"analysis.report.report.{name}", lambda figure: b"not drawn")
