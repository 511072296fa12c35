"""Real shells, asked what they complete."""

from __future__ import annotations

import os
import pty
import select
import shlex
import subprocess
import time
from collections.abc import Mapping

from tests.support import PATIENCE

BASH = """\
{ready}
COMP_LINE={line} COMP_POINT=${{#COMP_LINE}} COMP_TYPE=9
_python_argcomplete volattach
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
FISH = "{ready}; complete -C {line}"


def offered(shell: str, ready: str, line: str, env: Mapping[str, str] = os.environ) -> set[str]:
    """What bash or fish offers at the end of a line, once it has run ``ready``."""
    script = (BASH if shell == "bash" else FISH).format(ready=ready, line=shlex.quote(line))
    words = [shell, *(["--norc"] if shell == "bash" else ["--no-config"]), "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False, env=env)
    assert done.stderr == ""
    return {found.partition("\t")[0].strip() for found in done.stdout.splitlines()} - {""}


def completed_by_zsh(line: str, before: str = ":", after: str = ":", env: Mapping[str, str] = os.environ) -> str:
    """The line as zsh completes it: typed into a terminal, with a tab behind it, and then printed.

    What is run around compinit makes the completion known.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe("zsh", ["zsh", "-f", "-i"], {**env, "TERM": "dumb"})
    try:
        type_in(terminal, f'{before}; autoload -U compinit; compinit -u -D; {after}; echo set-""up\n', "set-up")
        # The beginning of the line, then a word before it: what was completed is printed, and not run.
        said = type_in(terminal, f"{line}\t\x01echo to: \x05 :end\n", " :end\r\n", after="\nto: ")
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)
    return said.rpartition("\nto: ")[2].partition(" :end")[0].strip()


def type_in(terminal: int, text: str, until: str, after: str = "") -> str:
    """Type, and read what comes until ``until`` is there behind ``after``."""
    os.write(terminal, text.encode())
    said, deadline = "", time.monotonic() + PATIENCE
    while until not in said.partition(after)[2] if after else until not in said:
        readable, _, _ = select.select([terminal], [], [], deadline - time.monotonic())
        assert readable, f"zsh said only: {said!r}"
        said += os.read(terminal, 65536).decode(errors="replace")
    return said
