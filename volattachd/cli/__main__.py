"""``python -m volattachd.cli``: the same as ``volattach``."""

from volattachd.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
