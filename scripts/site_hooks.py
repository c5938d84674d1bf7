"""What `mkdocs build` does beside turning docs/ into pages (`hooks` in mkdocs.yml): pages from elsewhere, and links to them.

Pages in docs/ are written to be read on the code host, too. So links lead to files of the repository, and are turned here
into links of the site.
"""

import json
import os
import posixpath
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
COMMANDS = "reference/commands.md"
ELSEWHERE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}
"""Files outside docs/ → their pages. Of README there is none of its own: the home page takes its place."""


class Defaults(griffe.Extension):
    """Show a field's default as it is, `None` and not `added(None)`: the mark is for fingerprints (`pipelines.identity`)."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        value = attr.value
        if isinstance(value, griffe.ExprCall) and str(value.function) in ("added", "runtime") and value.arguments:
            attr.value = value.arguments[0]


def on_files(files: Files, config: Any) -> Files:
    """Add the commands' page, notebooks as pages, and what docs/ links to outside of it."""
    for source in sorted((ROOT / "benchmarks" / "results").iterdir()):
        name = f"benchmarks/results/{source.name}"
        files.append(File.generated(config, name, abs_src_path=str(source)))
    for name, page in ELSEWHERE.items():
        if page not in files.src_uris:
            files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        text = notebook_page(json.loads(notebook.read_text()), notebook.name)
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=text))
    files.append(File.generated(config, COMMANDS, content=commands_page()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Turn links to the repository's files into links to their pages; a link called by a page's file name gets its title."""
    uri = page.file.src_uri
    here = next((source for source, name in ELSEWHERE.items() if name == uri and name != "index.md"), None)
    here = here or (uri if uri.startswith("benchmarks/") else f"docs/{uri}")
    names = titles(config.nav)

    def on_the_site(match: re.Match[str]) -> str:
        text, target, anchor = match.groups()
        if ":" in target:
            return match[0]
        found = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        found = ELSEWHERE.get(found, found.removeprefix("docs/"))
        if found.endswith(".ipynb") and "Download" not in text:
            found = found.removesuffix(".ipynb") + ".md"
        if re.fullmatch(r"\[[\w/]+\.md\]\(", text):
            text = f"[{names.get(found, found)}]("
        return f"{text}{posixpath.relpath(found, posixpath.dirname(uri) or '.')}{anchor}"

    inline = re.sub(r"(\[[^\[\]]*\]\()([^)\s#]+)((?:#[^)\s]*)?(?=\)))", on_the_site, markdown)
    return re.sub(r"(?m)^(\[[^\]]+\]: )([^\s#]+)((?:#\S*)?)$", on_the_site, inline)


def on_page_content(html: str, page: Any, config: Any, **_: Any) -> str:
    """Link pages that are named as `docs/PAGE.md`; take roles out of docstrings, backslashes of pipes out of tables."""
    uri, names = page.file.src_uri, titles(config.nav)

    def to_page(match: re.Match[str]) -> str:
        name = f"{match[1]}.md"
        if name not in names or name == uri:
            return match[0]
        address = posixpath.relpath(f"{match[1]}.html", posixpath.dirname(uri) or ".")
        return f'<a href="{address}">{names[name]}</a>'

    html = re.sub(r"<code>docs/(\w+)\.md</code>", to_page, html)
    if uri.startswith("reference/"):
        html = re.sub(r":(?:class|func|mod|meth|data):<code>~?", "<code>", html)
        html = re.sub(r"(?<![\w/])docs/(\w+)\.md", to_page, html)
    return re.sub(r"<td.*?</td>", lambda cell: cell[0].replace("\\|", "|"), html)


def titles(nav: Any) -> dict[str, str]:
    """Each page's name in the navigation."""
    found: dict[str, str] = {}
    for entry in nav:
        for title, inner in entry.items():
            found |= {inner: title} if isinstance(inner, str) else titles(inner)
    return found


def commands_page() -> str:
    """Each command with its `--help`, as Typer writes it for a page; needs nothing but the command line's own imports."""
    command = [sys.executable, "-m", "typer", "sweep.app", "utils", "docs", "--name", "blindsweep", "--title", "Commands"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("BLINDSWEEP_", "MLFLOW_"))}
    environment |= {"PYTHONPATH": str(ROOT), "TERM": "dumb", "_TYPER_STANDARD_TRACEBACK": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"no page of the commands: {done.stderr}")
    # Typer cuts each command's line in a list to what fits a terminal: it is put there whole, and leads to the command.
    summaries = dict(re.findall(r"(?m)^#+ `blindsweep (.+)`\n\n(.+)$", done.stdout))
    group, lines = "", []
    for line in done.stdout.splitlines():
        if heading := re.match(r"#+ `blindsweep (.+)`", line):
            group = f"{heading[1]} "
        if entry := re.match(r"\* `([a-z]+)`: ", line):
            name = f"{group}{entry[1]}"
            line = f"* [`{name}`](#blindsweep-{name.replace(' ', '-')}): {summaries[name]}"
        lines.append(line)
    return "\n".join(lines)


def notebook_page(notebook: dict[str, Any], name: str) -> str:
    """A notebook as Markdown: its texts, its code, and the outputs that it was saved with. No code is run."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if html := "".join(data.get("text/html", ())):
                parts.append(f'<div class="output">\n{html}\n</div>')
            elif text := "".join(output.get("text", data.get("text/plain", ()))):
                parts.append(f'<div class="output" markdown="1">\n\n```text\n{text.rstrip()}\n```\n\n</div>')
    return "\n\n".join([*parts, f"[Download the notebook]({name})"]) + "\n"
