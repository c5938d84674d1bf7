"""Runs a notebook's code in this process, cell by cell, as Jupyter would, and keeps its outputs. Standard library only.

PYTHONPATH=. .venv/bin/python scripts/notebook.py docs/notebooks/audit.ipynb      # writes the outputs anew
"""

import ast
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any


def run_cell(source: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a cell in `names`; its outputs in the notebook's format: what it printed, and its last expression's value."""
    code = ast.parse(source)
    last = code.body[-1] if code.body and isinstance(code.body[-1], ast.Expr) else None
    code.body = code.body[:-1] if last else code.body
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "notebook", "exec"), names)
        value = eval(compile(ast.Expression(last.value), "notebook", "eval"), names) if last else None
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)})
    if value is not None:
        # What has a view of its own has no other here: a large value's repr would fill pages.
        html = getattr(value, "_repr_html_", lambda: None)()
        data = {"text/html": html.splitlines(keepends=True)} if html else {"text/plain": repr(value).splitlines(keepends=True)}
        outputs.append({"data": data, "metadata": {}, "output_type": "execute_result"})
    return outputs


def run(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook with the outputs that its code has now; it is run in the current folder."""
    names: dict[str, Any] = {"__name__": "__main__"}
    cells, count = [], 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            outputs = run_cell("".join(cell["source"]), names)
            for output in outputs:
                if output["output_type"] == "execute_result":
                    output["execution_count"] = count
            cell = {**cell, "execution_count": count, "outputs": outputs}
        cells.append(cell)
    return {**notebook, "cells": cells}


def main() -> None:
    file = Path(sys.argv[1]).resolve()
    notebook = json.loads(file.read_text())
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        done = run(notebook)
    file.write_text(json.dumps(done, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
