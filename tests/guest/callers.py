"""A client that calls all the time: what a restart of the daemon does to those who come meanwhile.

Runs inside the guest: ``python3 -m tests.guest.callers REPORT``, until it gets SIGTERM. Each call has a connection of
its own. The report is one line of JSON, written anew after each call: how many were
answered, and the words of those that were not.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from volattachd.client.sync import Client, ClientError, NoAnswer

PAUSE = 0.1  # seconds: a guest has one processor


def main(report: str) -> None:
    """Call until killed."""
    answered, refused, unanswered = 0, [], []
    while True:
        try:
            with Client(timeout=60) as client:
                client.call("list_volumes")
            answered += 1
        except NoAnswer as error:
            unanswered.append(str(error))  # sent to a daemon that ended before it answered: to be sent again
        except ClientError as error:
            refused.append(str(error))
        line = json.dumps({"answered": answered, "refused": refused, "unanswered": unanswered})
        time.sleep(PAUSE)
        beside = Path(report + ".new")
        beside.write_text(line, encoding="utf-8")
        beside.rename(report)


if __name__ == "__main__":
    main(*sys.argv[1:])
