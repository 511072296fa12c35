"""``python -m demo``: exit code 0 where everything was as it should be, 1 where anything was not."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from demo.initiators import Surprise
from demo.screen import Screen
from demo.stage import Stage
from demo.story import Story
from volattachd.client.sync import ClientError
from volattachd.errors import VolattachError

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal that asks us to end; its number."""


def main() -> int:
    """Run the demo; the answer is the exit code."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="One volume through the six calls.")
    parser.add_argument("--driver", default="auto", metavar="NAME", help="as of volattachd: auto, lio or tgt")
    options = parser.parse_args()
    screen = Screen(sys.stdout)
    if os.geteuid() != 0:
        screen.bad("demo: run it as root: it starts an iSCSI target")
        return 1
    for number in _ENDING:
        signal.signal(number, _interrupt)
    started = time.monotonic()
    stage = Stage(options.driver)
    story = Story(stage, screen)
    code = _tell(story, stage, screen)
    if stage.left:
        screen.bad(f"demo: could not remove {', '.join(stage.left)}")
        return 1
    if code == 0:
        screen.title(
            f"done in {time.monotonic() - started:.1f} s: {story.calls} calls in {story.seconds * 1000:.0f} ms,"
            f" {story.refused} logins refused, nothing left behind"
        )
    return code


def _tell(story: Story, stage: Stage, screen: Screen) -> int:
    """The story and, whatever came of it, the clearing away."""
    try:
        story.tell()
        return 0
    except (Surprise, VolattachError, ClientError, OSError) as error:
        return _tell_failure(error, stage, screen)
    except Interrupted as interrupted:
        with suppress(OSError):
            screen.bad("\ndemo: interrupted")
        return 128 + int(interrupted.args[0])
    finally:
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)  # clearing away is bounded, and must be whole
        if story.initiator is not None:
            story.initiator.close()
        stage.close()


def _tell_failure(error: Exception, stage: Stage, screen: Screen) -> int:
    try:
        screen.bad(f"\ndemo: {error}")
        if tail := stage.log_tail():
            screen.line("the last lines of the daemon's log:")
            screen.quote(tail)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads: nothing is left to tell
    return 1


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    raise Interrupted(number)


if __name__ == "__main__":
    sys.exit(main())
