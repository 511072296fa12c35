"""``python -m volattachd``, and the command ``volattachd``: the daemon, where what it needs is installed."""

import gc
import sys


def main() -> int:
    """Runs the daemon; the answer is its exit code."""
    gc.disable()  # a start leaves next to nothing to collect, and looking for it took a tenth of it; until READY
    try:
        from volattachd.daemon import main as run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "volattachd":
            raise
        print(f"volattachd: cannot start: the Python package {error.name} is not installed", file=sys.stderr)
        print("try: pip install volattachd (without --no-deps, which is for the client alone)", file=sys.stderr)
        return 1
    return run()


if __name__ == "__main__":
    sys.exit(main())
