"""All that is broken on purpose, and the table of docs/reliability.md.

python -m tests.chaos [--points N]      N points of each kind; half an hour on two cores with 2
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PARTS = ("writes", "damage", "processes")


def main() -> int:
    """Exit code 1 if a verdict is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=2, help="of each kind")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this; may be given again")
    options = parser.parse_args()
    rows, codes = [], []
    with tempfile.TemporaryDirectory() as folder:
        for part in options.part or PARTS:
            counts = Path(folder, f"{part}.json")
            command = [sys.executable, str(HERE / f"{part}.py"), "--points", str(options.points), "--json", str(counts)]
            codes.append(subprocess.run(command, env={**os.environ, "PYTHONPATH": str(HERE.parents[1])}).returncode)
            if counts.exists():
                rows += [(part, what, row) for what, row in json.loads(counts.read_text()).items()]
    print(table(rows))
    return int(any(codes))


def table(rows: list[tuple[str, str, dict[str, int]]]) -> str:
    """Markdown: what was done, how often, and how many of these ended in the bytes of an undisturbed run."""
    names = {"writes": "at a call of a step", "damage": "damage", "processes": "killed"}
    lines = ["| | what | points | same in the end | wrong |", "|---|---|---|---|---|"]
    for part, what, row in rows:
        lines.append(f"| {names[part]} | {what} | {row['points']} | {row['points'] - row['wrong']} | {row['wrong']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
