"""Runs one guest and leaves nothing of it behind, whatever happens to the process that wanted the guest.

A User-Mode Linux is many processes, and killing its first one leaves the others. This small process starts it in a
session of its own, adopts all its orphans, and kills the whole group when its standard input says so or ends.

Run as a script:  supervise.py SCRATCH COMMAND...   Standard input: a byte means kill; the end of it means that the
owner is gone, and that SCRATCH is to be removed as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
REAP_LIMIT = 20


def prctl(option: int, value: int) -> None:
    """The C library's prctl, or OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def start(command: list[str]) -> int:
    """The guest as leader of its own session and group, killed with this process."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: {error}\n".encode())
    finally:
        os._exit(127)


def wait(pid: int) -> bool:
    """Until the guest ends or is to end; True if that is because the owner is gone."""
    poll = select.poll()
    guest = os.pidfd_open(pid)
    poll.register(guest, select.POLLIN)
    poll.register(0, select.POLLIN | select.POLLHUP)
    ready = dict(poll.poll())
    return guest not in ready and os.read(0, 1) == b""


def reap(pid: int) -> int:
    """Kill the group, wait for every process of it; the first one's exit status as a shell gives it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    signal.alarm(REAP_LIMIT)
    result = 0
    while True:
        try:
            ended, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return result
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            result = code if code >= 0 else 128 - code


def main(argv: list[str]) -> int:
    """The whole life of one guest."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))
    scratch, command = argv[0], argv[1:]
    pid = start(command)
    os.closerange(3, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") < 4096 else 4096)
    orphaned = False
    try:
        orphaned = wait(pid)
    finally:
        code = reap(pid)
        if orphaned:
            shutil.rmtree(scratch)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
