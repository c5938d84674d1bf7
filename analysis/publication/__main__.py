"""Keep what is published of a study, and make its page:

python -m analysis.publication rates --store STORE --output docs/studies/data/rate_search.json
"""

import argparse
import sys
from pathlib import Path

from analysis.publication.rates import write_outcome
from pipelines.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.publication", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    rates = commands.add_parser("rates", help="The outcome of the search for a learning rate.")
    rates.add_argument("--store", required=True)
    rates.add_argument("--output", type=Path, required=True)
    given = parser.parse_args(arguments)
    try:
        print(write_outcome(given.store, given.output))
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
