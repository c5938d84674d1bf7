"""Keep what is published of a study, and make its page:

python -m analysis.publication rates --store STORE --output docs/studies/data/rate_search.json
python -m analysis.publication seeds study_qwen --store STORE
python -m analysis.publication keep study_qwen --store STORE
python -m analysis.publication keep study_qwen --store LATER --onto
python -m analysis.publication pages
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.publication.kept import keep
from analysis.publication.page import fill
from analysis.publication.pilot import SUFFIX
from analysis.publication.pilot import write_outcome as write_pilot
from analysis.publication.rates import write_outcome as write_rates
from pipelines.errors import UserError
from sweep.graph.records import Store

STUDIES = Path("docs/studies")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.publication", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    rates = commands.add_parser("rates", help="The outcome of the search for a learning rate.")
    rates.add_argument("--store", required=True)
    rates.add_argument("--output", type=Path, default=STUDIES / "data/rate_search.json")
    seeds = commands.add_parser("seeds", help="How many seeds a study gets, by the plan's rule, from its pilot.")
    seeds.add_argument("study")
    seeds.add_argument("--store", required=True)
    seeds.add_argument("--data", type=Path, default=STUDIES / "data")
    seeds.add_argument("--partial", action="store_true", help="Use what is there of the pilot.")
    kept = commands.add_parser("keep", help="What the repository keeps of a study, from its store.")
    kept.add_argument("study")
    kept.add_argument("--store", required=True)
    kept.add_argument("--data", type=Path, default=STUDIES / "data")
    kept.add_argument("--plan", type=Path, default=STUDIES / "qwen-plan.md")
    kept.add_argument("--partial", action="store_true", help="Keep what is there, and name what is missing.")
    kept.add_argument("--onto", action="store_true", help="Add further seeds to what is kept; its own store may be gone.")
    kept.add_argument("--estimate", type=Path, help="What `blindsweep plan STUDY --json` said.")
    pages = commands.add_parser("pages", help="The pages of docs/studies, from what is kept: no store, no GPU.")
    pages.add_argument("--folder", type=Path, default=STUDIES)
    given = parser.parse_args(arguments)
    try:
        if given.command == "rates":
            print(write_rates(given.store, given.output))
        elif given.command == "seeds":
            pilot = given.study.removesuffix(SUFFIX) + SUFFIX
            print(write_pilot(given.store, pilot, given.data / f"{pilot}.json", partial=given.partial))
        elif given.command == "keep":
            estimate = _estimate(given.estimate) if given.estimate else None
            options = {"plan": given.plan, "estimate": estimate, "partial": given.partial, "onto": given.onto}
            print(keep(Store(given.store), given.study, given.data / given.study, **options))
        else:
            if not (found := sorted(given.folder.glob("*.md"))):
                raise UserError(f"--folder {given.folder}: there are no pages (*.md); give the folder that has them")
            for page in found:
                print("\n".join(str(path) for path in fill(page, given.folder / "data")))
    except (UserError, OSError, ValueError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


def _estimate(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"--estimate {path} is no JSON ({error}); give what `blindsweep plan STUDY --json` printed") from error
    if not isinstance(values, dict):
        raise UserError(f"--estimate {path} is no JSON object; give what `blindsweep plan STUDY --json` printed")
    return values


if __name__ == "__main__":
    sys.exit(main())
