"""No stage's output goes through `Path`: it may be a URI, which `Path` would make a folder named `s3:` of."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OUTPUTS = {"output", "outputs", "uri", "store", "store_uri"}
"""What parameters and attributes are called that a stage writes to, or reads from a store."""
LOCAL_ONLY = {"Path", "open", "mkdir", "makedirs", "exists", "listdir", "scandir", "copytree", "copyfile", "rmtree"}
"""Calls that take a path of this machine; methods of a `Path` or of fsspec's have it before the dot."""
BRINGS_HERE = {"fetch", "local_path", "working_folder"}
"""Calls whose result is a path of this machine."""


def called(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else call.func.attr if isinstance(call.func, ast.Attribute) else ""


def outputs_in(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Call) and called(node) in BRINGS_HERE:
        return
    if isinstance(node, ast.Name | ast.Attribute):
        name = node.id if isinstance(node, ast.Name) else node.attr
        if name in OUTPUTS:
            yield name
    for child in ast.iter_child_nodes(node):
        yield from outputs_in(child)


def slips(source: str) -> list[str]:
    return [
        f"{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and called(node) in LOCAL_ONLY and any(map(list, map(outputs_in, node.args)))
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_output_is_taken_for_a_path_of_this_machine(path):
    # `storage.py` is where the two are told apart.
    assert path.name == "storage.py" or slips(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "(Path(output) / 'train.parquet').write_bytes(b'')",
        "pq.write_table(table, Path(join(output, 'examples.parquet')))",
        "os.makedirs(f'{output}/pool')",
        "Path(job.output).mkdir()",
    ],
)
def test_what_was_wrong_is_seen(line):
    assert slips(line)


def test_what_was_brought_here_may_be_a_path():
    assert slips("Path(fetch(output)) / 'model'\nwith working_folder(output) as folder: Path(folder).mkdir()") == []
