"""Writes the files of the manual, or checks that they are up to date.

python -m docgen           writes them
python -m docgen --check   names the files that are stale, and fails if there are any
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from docgen.files import stale, write


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Gives 1 where ``--check`` finds a stale file."""
    parser = argparse.ArgumentParser(prog="python -m docgen", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is stale")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help="the tree")
    args = parser.parse_args(argv)
    if not args.check:
        write(args.root)
        return 0
    names = stale(args.root)
    for name in names:
        print(f"{name} is stale: run python -m docgen", file=sys.stderr)
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
