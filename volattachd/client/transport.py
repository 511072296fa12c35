"""The way to a daemon by its address: the path of a socket, or ``ssh://[user@]host[:port][/socket]``.

Either way gives a connected stream socket: whoever speaks over it need not know which it is.
"""

from __future__ import annotations

from volattachd.client import unix


def dial(address: str, timeout: float) -> unix.Link:
    """Opens the way within ``timeout`` seconds. Raises Unreachable, or AccessRefused."""
    if address.startswith("ssh://"):
        from volattachd.client import ssh  # it starts a process, and what that takes is needed by nobody else

        return ssh.dial(address, timeout)
    return unix.dial(address, timeout)
