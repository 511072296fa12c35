"""Where initiators log in: the portals of the configuration, and the address that one connector can reach.

pyroute2 is imported where netlink is asked: it is most of what a start of the daemon would cost, and a start with
fixed portals asks nothing.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Sequence
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from volattachd.drivers.base import Portal
from volattachd.errors import ConfigError, DriverError, InvalidInput
from volattachd.lean import without_init

#: IANA's port for iSCSI (RFC 3720 section 12.8).
DEFAULT_PORT = 3260

Address = IPv4Address | IPv6Address

#: More than the kernel's answer of one route ever takes.
_ROUTE_BYTES = 65536

_WORD = re.compile(r"(?:\[(?P<bracketed>[^\]]+)\]|(?P<bare>[^\[\]]+?))(?::(?P<port>[0-9]{1,5}))?")


def resolve_portals(words: Sequence[str]) -> tuple[Portal, ...]:
    """The portals that the configuration means: addresses, or every global address of an interface.

    Without any word: every address. Raises ConfigError for what is neither.
    """
    if not words:
        return default_portals()
    found: dict[Portal, None] = {}
    for word in words:
        found.update(dict.fromkeys(_resolve_word(word)))
    return tuple(found)


def names_interface(words: Iterable[str]) -> bool:
    """Whether one of the words is the name of an interface, whose addresses may come and go."""
    return any(_fixed_portal(word) is None for word in words)


def default_portals() -> tuple[Portal, ...]:
    """The wildcard that takes both families where there is IPv6, else the one for IPv4.

    Binding both fails with EADDRINUSE, unless the host keeps the families apart (bindv6only).
    """
    only_v4 = Portal(IPv4Address("0.0.0.0"), DEFAULT_PORT)  # noqa: S104 - initiators are elsewhere
    if not Path("/proc/net/if_inet6").exists():
        return (only_v4,)
    both = Portal(IPv6Address("::"), DEFAULT_PORT)
    apart = Path("/proc/sys/net/ipv6/bindv6only").read_text(encoding="ascii").strip() == "1"
    return (both, only_v4) if apart else (both,)


def _resolve_word(word: str) -> list[Portal]:
    fixed = _fixed_portal(word)
    if fixed is not None:
        return [fixed]
    name, port = _split(word)
    return [Portal(address, port) for address in _addresses_of(name)]


def _fixed_portal(word: str) -> Portal | None:
    """The portal of an address; None for the name of an interface."""
    try:
        return Portal(ip_address(word), DEFAULT_PORT)  # an IPv6 address without brackets has no port
    except ValueError:
        name, port = _split(word)
    try:
        return Portal(ip_address(name), port)
    except ValueError:
        return None


def _split(word: str) -> tuple[str, int]:
    match = _WORD.fullmatch(word)
    port = int(match["port"] or DEFAULT_PORT) if match else 0
    if match is None or not 0 < port < 65536:
        raise ConfigError(f"target.portals: {word!r} is not an address or interface with an optional port")
    return match["bracketed"] or match["bare"], port


def _addresses_of(interface: str) -> list[Address]:
    """The addresses of an interface that other hosts could use (no link-local ones)."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        indexes = route.link_lookup(ifname=interface)
        if not indexes:
            raise ConfigError(f"target.portals: {interface!r} is neither an address nor an interface of this host")
        messages = list(route.get_addr(index=indexes[0]))
    found = [ip_address(_attribute(message, "IFA_ADDRESS")) for message in messages]
    return [address for address in found if not address.is_link_local]


#: Characters of a value that a message repeats.
_SHOWN = 80


def reachable_portals(portals: Sequence[Portal], connector_ip: object) -> list[Portal]:
    """The portals to give to one connector, the best first; a wildcard becomes this host's address towards it.

    Raises InvalidInput where ``connector_ip`` is not an address, DriverError where no portal leads to it.
    """
    peer = _peer_address(connector_ip)
    source = _source_towards(peer)
    found: dict[Portal, None] = {}
    for portal in portals:
        address = portal.address
        if address.is_unspecified:
            if source is not None and (source.version == address.version or address.version == 6):
                found[Portal(source, portal.port)] = None
        elif _may_reach(address, peer, source):
            found[portal] = None
    if not found:
        listening = ", ".join(map(str, portals))
        raise DriverError(f"no portal can be reached from {connector_ip or 'the connector'}: listening on {listening}")
    return sorted(found, key=lambda portal: portal.address != source)


def _peer_address(connector_ip: object) -> Address | None:
    if connector_ip is None:
        return None
    try:
        peer = ip_address(str(connector_ip))
    except ValueError as error:
        shown = str(connector_ip)[:_SHOWN]
        raise InvalidInput(f"connector.ip {shown!r} is not an IP address") from error
    if peer.version == 6 and peer.is_link_local:
        raise InvalidInput(
            f"connector.ip {str(peer)[:_SHOWN]!r} is a link-local address, which names a host on one link alone",
            "give an address that is routed, or leave ip out: then every portal is named",
        )
    if isinstance(peer, IPv6Address) and peer.ipv4_mapped:
        return peer.ipv4_mapped
    return peer


def _may_reach(address: Address, peer: Address | None, source: Address | None) -> bool:
    """The families must agree, where the peer is known; a loopback portal is for this host only."""
    if peer is None:
        return True
    return address.version == peer.version and (not address.is_loopback or peer.is_loopback or peer == source)


def _source_towards(peer: Address | None) -> Address | None:
    """The address that this host would use as its own towards ``peer`` (an unknown one: towards anywhere)."""
    candidates: list[Address] = [peer] if peer else [IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")]
    for candidate in candidates:
        source = _route_source(candidate)
        if source is not None:
            return source
    return None if peer else IPv4Address("127.0.0.1")


def _route_source(peer: Address) -> Address | None:
    """The source that the kernel would choose towards ``peer`` (rtnetlink(7)); None where it knows no way.

    pyroute2 writes the question and reads the answer. Its IPRoute would bring queues and an event loop along for this
    one message, and each attachment asks.
    """
    netlink, rtnl, rtmsg = _rtnetlink()
    question = rtmsg()
    question["header"]["type"], question["header"]["flags"] = rtnl.RTM_GETROUTE, netlink.NLM_F_REQUEST
    question["family"] = socket.AF_INET if peer.version == 4 else socket.AF_INET6
    question["dst_len"] = peer.max_prefixlen
    question["attrs"] = [("RTA_DST", str(peer))]
    question.encode()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as route:
        route.send(question.data)
        answer = rtmsg(route.recv(_ROUTE_BYTES))
    answer.decode()
    source = None if answer["header"]["type"] == netlink.NLMSG_ERROR else _attribute(answer, "RTA_PREFSRC")
    return ip_address(source) if source else None


@cache
def _rtnetlink() -> tuple[Any, Any, Any]:
    """pyroute2's netlink, its rtnetlink, and the message about routes.

    All of pyroute2 takes eight times as long to import, and the first attachment of a daemon's life would wait for it.
    Where a portal is an interface, all of it is there since the start: no other thread imports it beside this one.
    """
    with without_init("pyroute2"):
        from pyroute2 import netlink
        from pyroute2.netlink import rtnl
        from pyroute2.netlink.rtnl.rtmsg import rtmsg
    return netlink, rtnl, rtmsg


def _attribute(message: Any, name: str) -> Any:
    """One attribute of a netlink message."""
    return message.get_attr(name)
