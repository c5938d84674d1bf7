"""All that is broken on purpose, and the table of docs/reliability.md.

python -m tests.chaos [--points N]      N points of each kind; half an hour on two cores with 2
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PARTS = ("writes", "damage", "leases", "engines", "processes")


def main() -> int:
    """Exit code 1 if a verdict is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=2, help="of each kind")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this; may be given again")
    options = parser.parse_args()
    rows, codes = [], []
    with tempfile.TemporaryDirectory() as folder:
        for part in options.part or PARTS:
            counts, began = Path(folder, f"{part}.json"), time.monotonic()
            command = [sys.executable, str(HERE / f"{part}.py"), "--points", str(options.points), "--json", str(counts)]
            codes.append(subprocess.run(command, env={**os.environ, "PYTHONPATH": str(HERE.parents[1])}).returncode)
            print(f"-- {part}: exit code {codes[-1]} after {time.monotonic() - began:.0f} s", flush=True)
            if counts.exists():
                rows += [(part, what, row) for what, row in json.loads(counts.read_text()).items()]
    print(table(rows))
    return int(any(codes))


def table(rows: list[tuple[str, str, dict[str, Any]]]) -> str:
    """Markdown: what was broken and how often; how many ended in the bytes of an undisturbed run, and how many of these in the
    run that was disturbed, where that is asked; how many said one clear line; how many verdicts are wrong.
    """
    lines = [
        "| part | broken | points | as undisturbed in the end | of these by the same run | said one clear line | wrong |",
        "|---|---|---|---|---|---|---|",
    ]
    for part, what, row in rows:
        same, went_on, said = row["points"] - row["wrong"], row.get("went_on", ""), row.get("said", "")
        lines.append(f"| {part} | {what} | {row['points']} | {same} | {went_on} | {said} | {row['wrong']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
