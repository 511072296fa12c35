#!/usr/bin/python3
"""Splits the installed modules: what the client half imports, wherever in a function, belongs to it.

client_half.py DAEMON AGENT SHARED: three directories that have, or get, a package ``volattachd`` each. The command line
and the agent go to AGENT, what else they import to SHARED; a new module needs no line anywhere.
"""

import shutil
import sys
from modulefinder import ModuleFinder
from pathlib import Path

AGENT = ("cli", "agent")
CLIENTS = ("errors.py", "model.py", "lifecycle.py", "client/sync.py", "client/aio.py")


def main(daemon: str, agent: str, shared: str) -> None:
    """Move the files."""
    daemon = str(Path(daemon).resolve())
    package = Path(daemon, "volattachd")
    entries = [path for name in AGENT for path in package.glob(f"{name}/**/*.py")]
    entries += [package / name for name in CLIENTS if (package / name).exists()]
    finder = ModuleFinder(path=[daemon])  # nothing else is looked into: the standard library is not ours
    for entry in entries:
        finder.import_hook(".".join(entry.relative_to(daemon).with_suffix("").parts).removesuffix(".__init__"))
    found = {Path(module.__file__) for module in finder.modules.values() if module.__file__}
    for path in sorted(found | {package / "py.typed"}):
        inside = path.relative_to(daemon)
        target = Path(agent if inside.parts[1] in AGENT else shared, inside)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
