from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from volattachd.drivers.base import Portal
from volattachd.errors import ConfigError, DriverError, InvalidInput
from volattachd.host.portals import default_portals, reachable_portals, resolve_portals

HAS_IPV6 = "\n" in Path("/proc/net/if_inet6").read_text() if Path("/proc/net/if_inet6").exists() else False


def portals(*words: str) -> list[Portal]:
    return [Portal(ip_address(word.rpartition("@")[0] or word), int(word.rpartition("@")[2])) for word in words]


@pytest.mark.parametrize(
    ("word", "address", "port"),
    [
        ("192.0.2.1", "192.0.2.1", 3260),
        ("192.0.2.1:1", "192.0.2.1", 1),
        ("192.0.2.1:65535", "192.0.2.1", 65535),
        ("0.0.0.0", "0.0.0.0", 3260),
        ("2001:db8::1", "2001:db8::1", 3260),
        ("[2001:db8::1]", "2001:db8::1", 3260),
        ("[2001:db8::1]:3261", "2001:db8::1", 3261),
        ("::", "::", 3260),
        ("[::]:3261", "::", 3261),
        ("[192.0.2.1]:3261", "192.0.2.1", 3261),
    ],
)
def test_an_address_is_taken_with_and_without_a_port(word: str, address: str, port: int) -> None:
    assert resolve_portals([word]) == (Portal(ip_address(address), port),)


@pytest.mark.parametrize(
    "word",
    [
        "192.0.2.1:0",
        "192.0.2.1:65536",
        "192.0.2.1:99999",
        "192.0.2.1:100000",
        "192.0.2.1:-1",
        "192.0.2.1:x",
        "192.0.2.1:",
        "192.0.2.256",
        "192.0.2",
        "192.0.2.1/24",
        "[2001:db8::1",
        "2001:db8::1]",
        "[2001:db8::1]:",
        "[2001:db8::1]x",
        "[]:3260",
        ":3260",
        "2001:db8::g",
        "nosuchif0",
        "nosuchif0:3260",
        "storage.example.com",
        "192.0.2.1 ",
        " ",
        "192.0.2.1\n",
        "lo:٣",
        "a" * 1000,
        "é",
    ],
)
def test_what_is_neither_an_address_nor_an_interface_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=r"target\.portals: ") as caught:
        resolve_portals([word])
    assert repr(word) in str(caught.value) or repr(word.rpartition(":")[0]) in str(caught.value)


@pytest.mark.parametrize(("word", "port"), [("lo", 3260), ("lo:3261", 3261)])
def test_an_interface_stands_for_its_addresses(word: str, port: int) -> None:
    found = resolve_portals([word])
    assert Portal(ip_address("127.0.0.1"), port) in found
    assert all(portal.port == port and portal.address.is_loopback for portal in found)


def test_the_order_is_kept_and_what_stands_twice_counts_once() -> None:
    words = ["192.0.2.2", "192.0.2.1:3260", "192.0.2.2:3260", "[2001:db8::1]", "2001:db8:0::1"]
    assert list(resolve_portals(words)) == portals("192.0.2.2@3260", "192.0.2.1@3260", "2001:db8::1@3260")


def test_without_a_word_it_is_every_address() -> None:
    found = default_portals()
    assert resolve_portals([]) == found
    assert all(portal.address.is_unspecified and portal.port == 3260 for portal in found)
    assert found[0].address.version == (6 if Path("/proc/net/if_inet6").exists() else 4)


def test_an_interface_without_an_address_gives_no_portal_yet_and_a_connector_is_told_so() -> None:
    """In a network namespace of its own, the loopback interface is down and has no address."""
    program = (
        "from volattachd.errors import DriverError\n"
        "from volattachd.host.portals import reachable_portals, resolve_portals\n"
        "portals = resolve_portals(['lo'])\n"
        "try: reachable_portals(portals, '127.0.0.1')\n"
        "except DriverError as error: print(len(portals), error)\n"
    )
    command = ["unshare", "-n", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare" in done.stderr:
        pytest.skip("no network namespaces here")
    assert done.stdout.startswith("0 no portal can be reached from 127.0.0.1"), done.stderr


@pytest.mark.parametrize(
    ("listening", "peer", "given"),
    [
        # Explicit addresses: those of the peer's family.
        (["192.0.2.1@3260"], "192.0.2.9", ["192.0.2.1@3260"]),
        (["192.0.2.1@3260", "198.51.100.1@3261"], "192.0.2.9", ["192.0.2.1@3260", "198.51.100.1@3261"]),
        (["192.0.2.1@3260", "2001:db8::1@3260"], "192.0.2.9", ["192.0.2.1@3260"]),
        (["192.0.2.1@3260", "2001:db8::1@3260"], "2001:db8::9", ["2001:db8::1@3260"]),
        (["192.0.2.1@3260"], "2001:db8::9", []),
        (["2001:db8::1@3260"], "192.0.2.9", []),
        # A mapped address is the IPv4 address in it.
        (["192.0.2.1@3260", "2001:db8::1@3260"], "::ffff:192.0.2.9", ["192.0.2.1@3260"]),
        (["2001:db8::1@3260"], "::ffff:192.0.2.9", []),
        # Loopback is for this host alone.
        (["127.0.0.1@3260"], "127.0.0.1", ["127.0.0.1@3260"]),
        (["127.0.0.1@3260"], "127.0.0.2", ["127.0.0.1@3260"]),
        (["127.0.0.1@3260"], "203.0.113.9", []),
        (["127.0.0.1@3260", "192.0.2.1@3260"], "203.0.113.9", ["192.0.2.1@3260"]),
        (["::1@3260"], "::1", ["::1@3260"]),
        (["::1@3260"], "2001:db8::9", []),
        (["::1@3260"], "127.0.0.1", []),
        # A wildcard becomes this host's own address towards the peer.
        (["0.0.0.0@3260"], "127.0.0.1", ["127.0.0.1@3260"]),
        (["::@3261"], "127.0.0.1", ["127.0.0.1@3261"]),
        (["::@3260", "0.0.0.0@3260"], "127.0.0.1", ["127.0.0.1@3260"]),
        (["::@3260"], "::ffff:127.0.0.1", ["127.0.0.1@3260"]),
        # Without a known peer every explicit address is given.
        (["192.0.2.1@3260", "2001:db8::1@3260"], None, ["192.0.2.1@3260", "2001:db8::1@3260"]),
        (["127.0.0.1@3260"], None, ["127.0.0.1@3260"]),
    ],
)
def test_a_connector_gets_the_portals_that_it_can_reach(
    listening: Sequence[str], peer: str | None, given: Sequence[str]
) -> None:
    if given:
        assert sorted(map(str, reachable_portals(portals(*listening), peer))) == sorted(map(str, portals(*given)))
        return
    with pytest.raises(DriverError, match="no portal can be reached") as caught:
        reachable_portals(portals(*listening), peer)
    assert str(peer) in caught.value.message
    assert str(portals(*listening)[0]) in caught.value.message


@pytest.mark.skipif(not HAS_IPV6, reason="no IPv6 here")
def test_the_wildcards_are_of_one_family_or_of_both() -> None:
    assert reachable_portals(portals("::@3260"), "::1") == portals("::1@3260")
    with pytest.raises(DriverError):
        reachable_portals(portals("0.0.0.0@3260"), "::1")


def test_the_address_on_the_way_to_the_peer_comes_first() -> None:
    found = reachable_portals(portals("192.0.2.1@3260", "127.0.0.1@3260"), "127.0.0.1")
    assert found == portals("127.0.0.1@3260", "192.0.2.1@3260")


@pytest.mark.parametrize("words", [["0.0.0.0@3260"], ["::@3260"], ["::@3260", "0.0.0.0@3260"]])
def test_a_wildcard_is_never_given_to_a_connector(words: list[str]) -> None:
    (found,) = reachable_portals(portals(*words), None)
    assert not found.address.is_unspecified


@pytest.mark.parametrize("peer", ["", "host", "192.0.2", "192.0.2.1:3260", "[::1]", 5.5, [], {}])
def test_what_is_no_address_of_a_connector_is_refused(peer: Any) -> None:
    with pytest.raises(InvalidInput, match=r"connector\.ip"):
        reachable_portals(portals("192.0.2.1@3260"), peer)


@pytest.mark.parametrize(
    ("address", "text"), [("192.0.2.1", "192.0.2.1:3260"), ("2001:db8::1", "[2001:db8::1]:3260"), ("::", "[::]:3260")]
)
def test_an_ipv6_address_is_written_in_brackets(address: str, text: str) -> None:
    assert str(Portal(ip_address(address))) == text


@pytest.mark.parametrize("ip", ["fe80::1%eth0", "fe80::1", "fe80::1%" + "x" * 500])
def test_a_link_local_address_is_refused_because_it_names_no_host_of_another_link(ip: str) -> None:
    with pytest.raises(InvalidInput, match="link-local") as caught:
        reachable_portals([Portal(ip_address("192.0.2.1"))], ip)
    assert len(caught.value.message) < 300
    assert "leave ip out" in str(caught.value.correction)
