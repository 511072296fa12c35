from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from volattachd.drivers.listeners import is_taken, why_refused


def own_name() -> str:
    return Path("/proc/self/comm").read_text().strip()


@pytest.mark.parametrize(
    ("listens", "asked"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),
        ("::1", "[::1]"),
        ("::1", "[::]"),
        ("::", "127.0.0.1"),
    ],
)
def test_a_port_that_is_in_use_is_told_with_its_address_and_its_process(listens: str, asked: str) -> None:
    family = socket.AF_INET6 if ":" in listens else socket.AF_INET
    with socket.socket(family) as taken:
        taken.bind((listens, 0))
        port = taken.getsockname()[1]
        assert not is_taken(f"{asked}:{port}"), "bound is not listening"
        taken.listen()
        assert is_taken(f"{asked}:{port}")
        why = why_refused(f"{asked}:{port}")
        assert why.startswith("the port is in use")
        assert f"by process {os.getpid()} ({own_name()})" in why
        assert (f"on {'[' + listens + ']' if ':' in listens else listens}:{port}" in why) is (
            listens != asked.strip("[]")
        )


@pytest.mark.parametrize("other", ["127.0.0.2", "[::1]"])
def test_a_port_of_another_address_is_free(other: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        portal = f"{other}:{taken.getsockname()[1]}"
        assert not is_taken(portal)
        assert why_refused(portal).startswith("the port is free, so the address cannot be used")
