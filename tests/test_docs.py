"""The pages that people read: lines that an editor shows whole, links and options that there are, and their site."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import analysis.audit
import sweep
from scripts.check_site import problems
from sweep import cli, experiments

ROOT = Path(__file__).parents[1]
LONGEST_LINE = 200
MOST_LINES_OF_README = 100
FIRST_SCREEN = 30
IN_DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *IN_DOCS, *sorted((ROOT / "benchmarks" / "results").glob("*.md"))]


class SiteLoader(yaml.SafeLoader):
    """Reads mkdocs.yml, in which a tag names a Python function."""


SiteLoader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)
SITE = yaml.load((ROOT / "mkdocs.yml").read_text(), SiteLoader)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_line_of_a_page_is_too_long(page: Path) -> None:
    is_made = page.parent.name == "studies"
    lines = [line for line in page.read_text().splitlines() if not (is_made and line.startswith("|"))]
    lengths = {number: len(line) for number, line in enumerate(lines, 1)}
    assert {number: length for number, length in lengths.items() if length > LONGEST_LINE} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files_and_headings(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)", text, re.MULTILINE)
    missing = []
    for link in links:
        if link.startswith(("http://", "https://")):
            continue
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        # It is made with the site, from the commands themselves.
        if target == ROOT / "docs" / "reference" / "commands.md" and not heading:
            continue
        if not target.exists() or (heading and heading not in headings(target)):
            missing.append(link)
    assert not missing


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name != "results"], ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    floors = "pipelines|sweep|analysis|benchmarks|tests|docs|scripts"
    named = re.findall(rf"`((?:{floors})/[\w./-]*)`", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_list_begins_after_a_blank_line(page: Path) -> None:
    """The code host shows it as a list anyhow; the site would run it into the paragraph."""
    text = re.sub(r"(?ms)^ *```.*?^ *```$", "", page.read_text())
    assert re.findall(r"(?m)^(?![-*+ #|\d]).+\n(?:[-*+]|\d+\.) .*", text) == []


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands_of(page: Path) -> Iterator[list[str]]:
    """The words of each `blindsweep …` line in a page's blocks and of each in a table's first column; comments are left out."""
    text = page.read_text()
    for block in [*re.findall(r"(?ms)^```(?:console)?\n(.*?)^```", text), *re.findall(r"(?m)^\| `([^`]+)`", text)]:
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            # What follows a quotation mark or a semicolon is the shell's.
            for found in re.findall(r"(?:^|')\s*(?:TMPDIR=\S+ )?blindsweep ([^'#;]*)", line):
                yield shlex.split(found)


def unknown_of(words: list[str]) -> list[str]:
    """Of a command's words, a command that is none, or options that it does not have."""
    command: Any = typer.main.get_command(cli.app)
    while hasattr(command, "commands"):
        if not words or words[0].startswith("-"):
            break
        if words[0] not in command.commands:
            return words[:1]
        command, words = command.commands[words[0]], words[1:]
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help", "-h"}
    return [word for word in words if word.startswith("-") and word.partition("=")[0] not in known]


@pytest.mark.parametrize("page", [page for page in PAGES if "blindsweep" in page.read_text()], ids=lambda page: page.name)
def test_commands_and_options_that_a_page_gives_are_there(page: Path) -> None:
    assert [(words, unknown) for words in commands_of(page) if (unknown := unknown_of(words))] == []


def test_a_command_that_is_none_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    lines = ["blindsweep plan demo --cheap  # no", "blindsweep dat fetch", "ray exec 'blindsweep run x --no-report'"]
    page.write_text("\n".join(["```", *lines, "```", "| `blindsweep u` | |"]))
    assert [unknown_of(words) for words in commands_of(page)] == [["--cheap"], ["dat"], [], ["u"]]


def test_readme_is_two_screens_with_both_commands_and_a_picture_first() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    first = "\n".join(lines[:FIRST_SCREEN])
    assert len(lines) <= MOST_LINES_OF_README
    assert re.search(r"^make demo ", first, re.MULTILINE) and re.search(r"^make test ", first, re.MULTILINE)
    (picture,) = re.findall(r"!\[[^\]]+\]\((\S+\.png)\)", first)
    assert (ROOT / picture).is_file()


def pages_of(nav: Any) -> Iterator[str]:
    for entry in nav.values() if isinstance(nav, dict) else nav:
        if isinstance(entry, str):
            yield entry
        else:
            yield from pages_of(entry)


def test_the_site_has_each_page_once() -> None:
    docs, results = ROOT / "docs", ROOT / "benchmarks" / "results"
    made = ["contributing.md", "changelog.md", "reference/commands.md"]
    made += [f"benchmarks/results/{page.name}" for page in results.glob("*.md")]
    made += [f"notebooks/{notebook.stem}.md" for notebook in (docs / "notebooks").glob("*.ipynb")]
    assert sorted(pages_of(SITE["nav"])) == sorted([*(str(page.relative_to(docs)) for page in IN_DOCS), *made])


def test_the_site_takes_nothing_from_another_host() -> None:
    assert SITE["theme"]["font"] is False and SITE["strict"] is True
    assert set(SITE["validation"].values()) == {"warn"}
    assert not re.search(r"https?://", (ROOT / "mkdocs.yml").read_text() + (ROOT / "docs" / "site.css").read_text())


@pytest.mark.parametrize(
    ("page", "home", "names"),
    [
        ("python.md", "sweep", sweep.__all__),
        ("experiments.md", "sweep.experiments", experiments.__all__),
        ("audit.md", "analysis.audit", analysis.audit.__all__),
    ],
)
def test_the_reference_has_each_public_name_once(page: str, home: str, names: list[str]) -> None:
    listed = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "reference" / page).read_text(), re.MULTILINE)
    assert {name.rpartition(".")[0].removesuffix(".audit.audit") for name in listed} <= {home, "analysis"}
    assert sorted(name.rpartition(".")[2] for name in listed) == sorted(names)


@pytest.mark.slow
def test_the_site_is_built_and_checked() -> None:
    done = subprocess.run(["make", "docs"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every link leads somewhere, and nothing is loaded from another host" in done.stdout
    python, commands = ((ROOT / "site" / "reference" / f"{name}.html").read_text() for name in ("python", "commands"))
    # Fields and their defaults are read from the source, without the marks for fingerprints.
    signature = re.sub(r"<[^>]+>", "", python.partition('id="sweep.Experiment"')[2].partition("starting_sizes</code>")[0])
    assert "generators: int = 1," in signature and "added(" not in signature
    group = typer.main.get_command(cli.app)
    assert [name for name in group.commands if f'id="blindsweep-{name}"' not in commands] == []
    assert '<a href="../audit.html">Audit labelled texts</a>' in commands


GOOD = '<html><body><h2 id="there">x</h2><a href="other.html#there">y</a><img src="a.png"></body></html>'
BAD = {
    '<a href="gone.html">x</a>': "page.html links to gone.html, which is not there",
    '<a href="other.html#gone">x</a>': "page.html links to other.html#gone, and other.html has no such anchor",
    '<script src="https://cdn.example/x.js"></script>': "page.html loads https://cdn.example/x.js",
    '<link rel="stylesheet" href="//fonts.example/css">': "page.html loads //fonts.example/css",
    '<link rel="preconnect" href="https://fonts.example">': "page.html loads https://fonts.example",
    '<img src="gone.png">': "page.html loads gone.png, which is not there",
    "<style>@import 'https://fonts.example/x';</style>": "page.html loads https://fonts.example/x",
    '<p style="background: url(https://img.example/x)">x</p>': "page.html loads https://img.example/x",
}


@pytest.mark.parametrize("bad", BAD)
def test_the_sites_check_finds(bad: str, tmp_path: Path) -> None:
    for name in ("page.html", "other.html"):
        (tmp_path / name).write_text(GOOD)
    (tmp_path / "a.png").touch()
    (tmp_path / "site.css").write_text("p { background: url(a.png) }")
    # A link for people to follow is no loading.
    (tmp_path / "404.html").write_text('<a href="/page.html">x</a><a href="https://example.org">y</a>')
    assert list(problems(tmp_path)) == []
    (tmp_path / "page.html").write_text(GOOD.replace("</body>", f"{bad}</body>"))
    assert list(problems(tmp_path)) == [BAD[bad]]


def test_the_sites_check_looks_into_style_sheets_and_for_pages(tmp_path: Path) -> None:
    assert list(problems(tmp_path)) == [f"{tmp_path} has no pages; build it with: make docs"]
    (tmp_path / "page.html").write_text(GOOD.replace("other", "page"))
    (tmp_path / "a.png").touch()
    (tmp_path / "site.css").write_text("@font-face { src: url('https://fonts.example/x.woff2') }")
    assert list(problems(tmp_path)) == ["site.css loads https://fonts.example/x.woff2"]
