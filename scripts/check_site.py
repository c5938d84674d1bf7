"""Look at a built site, without a network: every link leads to a file and an anchor, nothing comes from another host.

python scripts/check_site.py site
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src", "object": "data"}
"""What a browser fetches by itself when it shows a page: tag → the attribute that says from where."""
LOADED_LINKS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload", "manifest"}


class Page(HTMLParser):
    """The anchors of a page, its links, and the addresses that are loaded with it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = {""}
        self.links: list[str] = []
        self.loaded: list[str] = []
        self._is_style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self._is_style = tag == "style"
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and LOADED_LINKS & set(given.get("rel", "").split()):
            self.loaded.append(given.get("href", ""))
        if tag in LOADED and LOADED[tag] in given:
            self.loaded.append(given[LOADED[tag]])
        self.loaded += _in_style(given.get("style", ""))

    def handle_data(self, data: str) -> None:
        if self._is_style:
            self.loaded += _in_style(data)

    def handle_endtag(self, tag: str) -> None:
        self._is_style = False


def _in_style(text: str) -> list[str]:
    return re.findall(r"""(?:url\(|@import\s+)["']?([^"')\s;]+)""", text)


def problems(site: Path) -> Iterator[str]:
    """One line for each link that leads nowhere, and for each thing that a page or a style sheet loads from another host."""
    pages = {file.resolve(): Page(file.read_text()) for file in sorted(site.rglob("*.html"))}
    if not pages:
        yield f"{site} has no pages; build it with: make docs"
    for file, page in pages.items():
        name = file.relative_to(site.resolve())
        # The page of an unknown address is shown at any address: its links begin at the site's root.
        is_anywhere = file.name == "404.html"
        for address in page.loaded:
            if _is_elsewhere(address):
                yield f"{name} loads {address}"
            elif not _target(site, file, address, is_anywhere).is_file():
                yield f"{name} loads {address}, which is not there"
        for link in page.links:
            if _is_elsewhere(link) or link.startswith(("mailto:", "data:")):
                continue
            target = _target(site, file, link, is_anywhere)
            anchor = unquote(urlsplit(link).fragment)
            if not target.is_file():
                yield f"{name} links to {link}, which is not there"
            elif target in pages and anchor not in pages[target].anchors:
                yield f"{name} links to {link}, and {target.name} has no such anchor"
    for sheet in sorted(site.rglob("*.css")):
        yield from (
            f"{sheet.relative_to(site)} loads {address}" for address in _in_style(sheet.read_text()) if _is_elsewhere(address)
        )


def _is_elsewhere(address: str) -> bool:
    return address.startswith("//") or urlsplit(address).scheme in ("http", "https", "ws", "wss", "ftp")


def _target(site: Path, page: Path, address: str, is_anywhere: bool) -> Path:
    if address.startswith("data:"):
        return page
    path = unquote(urlsplit(address).path)
    if not path:
        return page
    target = site / path.lstrip("/") if is_anywhere or path.startswith("/") else page.parent / path
    target = target.resolve()
    return target / "index.html" if target.is_dir() else target


def main() -> None:
    site = Path(sys.argv[1])
    found = list(problems(site))
    print("\n".join(found), file=sys.stderr, end="\n" if found else "")
    if found:
        sys.exit(f"{site}: {len(found)} problems")
    print(f"{site}: every link leads somewhere, and nothing is loaded from another host")


if __name__ == "__main__":
    main()
