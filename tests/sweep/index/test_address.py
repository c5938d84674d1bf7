"""How MLflow's database or server is named."""

from pathlib import Path

import pytest

from pipelines.errors import UserError
from sweep.index.address import absolute_uri, check_address, mask, sqlite_path, sqlite_uri

CHARACTERS = "%?#& '\"ü日+@:;=[]{}$*|<>`~\\"


@pytest.mark.parametrize("name", [*(f"a{character}b" for character in CHARACTERS), "%25", "a?uri=true", "50%25?#"])
def test_a_sqlite_uri_names_the_file_whatever_its_characters(name: str) -> None:
    from sqlalchemy.engine import make_url

    path = Path("/stores", name, "mlflow.db")
    uri = sqlite_uri(path)
    assert make_url(uri).database == str(path)
    assert sqlite_path(uri) == path
    # MLflow makes the folder of the URI's text as it stands.
    assert Path(uri.removeprefix("sqlite:///")).parent in (path.parent, Path())
    check_address(uri)


def test_a_path_that_no_uri_can_name_is_one_clear_error() -> None:
    with pytest.raises(UserError, match=r"b'/stores/\\xff/mlflow.db' is not UTF-8.*rename"):
        sqlite_uri(Path("/stores/\udcff/mlflow.db"))


def test_relative_databases_are_the_same_for_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("sqlite:///my.db") == f"sqlite:///{tmp_path}/my.db"
    assert absolute_uri("http://server:5000") == "http://server:5000"
    assert sqlite_path("postgresql://host/name") is None


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("htp://server:5000", "knows no htp://"),
        ("http:/server", "names no server"),
        ("http://server:port", "names no server"),
        ("sqlite://mlflow.db", "three slashes"),
        ("sqlite:///:memory:", "names no file"),
        ("./mlruns", "is a folder"),
        ("mysql:/host", "cannot be read"),
        ("postgresql+nothing://user:pass@host/name", r"postgresql\+nothing://user:\*\*\*@host/name cannot be read"),
    ],
)
def test_a_mistake_in_the_address_is_an_error(uri: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_address(uri)
    assert "pass@" not in str(caught.value)


@pytest.mark.parametrize("uri", ["https://user:pass@server/mlflow", "postgresql://host/name", "mysql+pymysql://u:p@h:3306/n"])
def test_an_address_that_may_be_right_is_none(uri: str) -> None:
    check_address(uri)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://user:s3cret@host/name", "postgresql://user:***@host/name"),
        ("postgresql://user:s3%2Fcr@t@host/name", "postgresql://user:***@host/name"),
        ("https://t0ken@host/path", "https://***@host/path"),
        ("mysql://host/name?user=me&password=s3cret", "mysql://host/name?user=me&password=***"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("http://host:5000", "http://host:5000"),
    ],
)
def test_secrets_are_masked(uri: str, shown: str) -> None:
    assert mask(uri, uri) == shown
    assert mask(f"cannot reach {uri}", uri) == f"cannot reach {shown}"
    assert mask("password s3/cr@t refused", "postgresql://user:s3%2Fcr%40t@host") == "password *** refused"
