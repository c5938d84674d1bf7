"""How MLflow's database or server is named: tracking URIs, their mistakes, and their secrets."""

import os
import re
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from pipelines.errors import UserError

SERVERS = ("http", "https", "databricks", "databricks-uc", "uc")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SECRET_OPTIONS = re.compile("passw|secret|token|key", re.IGNORECASE)
FORMS = "http(s)://SERVER, sqlite:///FILE.db, postgresql://… or mysql://…"


def sqlite_uri(path: Path) -> str:
    """The tracking URI of a SQLite file, whatever characters its path has.

    Raises UserError for a path that is not UTF-8: no URI can name it.
    """
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{os.fsencode(text)!r} is not UTF-8, which MLflow's database needs; rename the folder") from error
    # SQLAlchemy takes what follows a question mark for options, and undoes percent signs. Slashes are quoted with the rest:
    # MLflow makes the folder of the text as it stands, and so finds no folder in it.
    return f"sqlite:///{quote(text, safe='') if '%' in text or '?' in text else text}"


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite tracking URI; None for what is no SQLite or is opened with SQLite's own options."""
    scheme, _, rest = uri.partition(":///")
    text, _, options = rest.partition("?")
    if scheme.partition("+")[0] != "sqlite" or not text or text == ":memory:" or "uri=" in options:
        return None
    return Path(unquote(text))


def absolute_uri(uri: str) -> str:
    """A tracking URI for processes that have another current folder."""
    path = sqlite_path(uri)
    return uri if path is None or path.is_absolute() or "?" in uri else sqlite_uri(path.absolute())


def check_address(uri: str) -> None:
    """Raise UserError for a mistake in a tracking URI that is seen without asking anyone."""
    shown = mask(uri, uri)
    scheme = uri if uri in SERVERS else uri.partition(":")[0] if ":" in uri else ""
    scheme, _, _ = scheme.partition("+")
    if scheme in ("", "file") and os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in ("true", "1"):
        raise UserError(f"--tracking-uri {shown} is a folder, which MLflow writes no more; name {FORMS}")
    if scheme in ("http", "https"):
        try:
            if urlsplit(uri).hostname and (urlsplit(uri).port or True):
                return
        except ValueError:
            pass
        raise UserError(f"--tracking-uri {shown} names no server; write {scheme}://HOST:PORT")
    if scheme in DATABASES:
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import SQLAlchemyError

        try:
            url = make_url(uri)
            url.get_dialect()
            if scheme == "sqlite" and (url.host or not url.database or url.database == ":memory:"):
                raise UserError(f"--tracking-uri {shown} names no file; write sqlite:///FILE.db, with three slashes")
        except ModuleNotFoundError:
            # Its driver is not installed: said when it is looked at.
            return
        except (SQLAlchemyError, ValueError) as error:
            reason = mask(str(error).splitlines()[0], uri)
            raise UserError(f"--tracking-uri {shown} cannot be read ({reason}); name {FORMS}") from error
        return
    plugins = {plugin.name for plugin in entry_points(group="mlflow.tracking_store")}
    if scheme not in {"", "file", *SERVERS, *plugins}:
        raise UserError(f"--tracking-uri {shown}: MLflow knows no {scheme}://; name {FORMS}")


def mask(text: str, uri: str) -> str:
    """`text` with the secrets of a tracking URI replaced: passwords, tokens, and options that are named like one."""
    # The longest first: one may be a part of another.
    for secret in sorted(set(secrets_of(uri)), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def secrets_of(uri: str) -> Iterator[str]:
    """The passwords, tokens and secret options in an address, as they stand there and without percent signs."""
    _, separator, rest = uri.partition("://")
    # A password may hold a slash or an at sign, though it should not.
    user, at, _ = rest.partition("?")[0].rpartition("@")
    if separator and at and not uri.startswith("sqlite"):
        name, colon, password = user.partition(":")
        secret = password if colon else name
        yield from (form for form in (secret, unquote(secret)) if form)
    for option in uri.partition("?")[2].split("&"):
        for name, value in parse_qsl(option):
            if SECRET_OPTIONS.search(name):
                yield from (form for form in (value, option.partition("=")[2]) if form)
