"""python -m tests.guest.harness build | run COMMAND... | shell | clean"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import termios
import tty

from .errors import GuestError
from .guest import SERIAL, Guest
from .image import clean, ensure_image


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.guest.harness", description=__doc__)
    parser.add_argument("--memory", default="1024M")
    parser.add_argument("--disk", action="append", default=[], help="size or file of an extra disk, /dev/ubdb on")
    commands = parser.add_subparsers(dest="action", required=True)
    commands.add_parser("build", help="make sure that the root image is there")
    run = commands.add_parser("run", help="boot, run a command, print its output, exit with its code")
    run.add_argument("--timeout", type=float, default=300.0)
    run.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND")
    commands.add_parser("shell", help="an interactive shell in a guest")
    commands.add_parser("clean", help="drop cached images that are not current")
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> int:
    """One word is a line for the shell, several are a command. /host/repo is where it runs."""
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    command = words[0] if len(words) == 1 else words
    with Guest(ensure_image(), memory=options.memory, extra_disks=options.disk) as guest:
        print(f"booted in {guest.boot_seconds:.1f} s", file=sys.stderr, flush=True)
        try:
            done = guest.run(command, timeout=options.timeout, cwd="/host/repo")
        except subprocess.TimeoutExpired as late:
            print(late.stdout, late.stderr, f"killed after {late.timeout:g} s", sep="\n", file=sys.stderr)
            return 124
    print(done.stdout, end="")
    print(done.stderr, end="", file=sys.stderr)
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


def shell(options: argparse.Namespace) -> int:
    """The guest's second serial line on the caller's terminal, until the shell there ends."""
    ours, theirs = socket.socketpair()
    guest = Guest(ensure_image(), memory=options.memory, extra_disks=options.disk)
    with ours, contextlib.closing(guest):
        with theirs:
            guest.boot(terminal=theirs)
        columns, rows = shutil.get_terminal_size()
        env = {"TERM": os.environ.get("TERM", "dumb")}
        guest.run(f"stty -F {SERIAL} cols {columns} rows {rows} sane", check=True)
        process = guest.start(["bash", "-l"], env=env, cwd="/host/repo", terminal=SERIAL)
        process.ended.add_done_callback(lambda _ended: ours.shutdown(socket.SHUT_RD))
        relay(ours)
        return 0 if process.running() else process.wait(0).returncode


def relay(line: socket.socket) -> None:
    """Bytes between the caller's terminal, made raw, and the line, until the line ends."""
    saved = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        while True:
            ready, _, _ = select.select([0, line.fileno()], [], [])
            if line.fileno() in ready:
                if not (data := line.recv(65536)):
                    return
                os.write(1, data)
            if 0 in ready:
                if not (typed := os.read(0, 65536)):
                    return
                line.sendall(typed)
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, saved)


def main(argv: list[str]) -> int:
    """Exit status as a shell expects it; a guest that cannot be had is 2."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))
    options = parse(argv)
    try:
        if options.action == "run":
            return run(options)
        if options.action == "shell":
            return shell(options)
        print(ensure_image() if options.action == "build" else "\n".join(map(str, clean())))
    except GuestError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
