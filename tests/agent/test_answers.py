"""Every value of an answer that can reach a command, a path, a file or XML: evil ones are refused, and named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.cli.hostile_daemon import EVIL, HARMLESS, PASSWORD, SERIAL, TARGET, VOLUME, Honest, Place, exchanged, places
from volattachd.agent.answers import (
    MAX_PORTALS,
    AttachmentInfo,
    IscsiInfo,
    LocalInfo,
    OtherInfo,
    VolumeInfo,
    check_name,
    is_portal,
    parse_attachment,
    parse_attachments,
    parse_connection,
    parse_uid,
    parse_volume,
)
from volattachd.agent.errors import UntrustedAnswer
from volattachd.errors import InvalidInput

ID = "00000000-0000-4000-8000-000000000001"
#: What is not used, or only sent back to the daemon or shown (which the command line makes harmless).
UNUSED = {"target_discovered", "volume_id", "encrypted", "qos_specs", "access_mode", "discard"}
UNUSED |= {"read_only", "conditions", "attachments", "mount_point", "created_at", "updated_at"}
#: What may also be null, or left out with the same meaning.
OPTIONAL = {"connector", "instance_uuid", "host_name", "target_portals", "target_iqns", "target_luns"}


def answer(method: str, volume_type: str = "iscsi") -> Any:
    return Honest(volume_type, "attached", ID).answer(method, {"connector": {}})


def parse(method: str, value: Any) -> Any:
    volume = parse_volume(answer("show_volume"))
    parsers: dict[str, Callable[[], Any]] = {
        "show_volume": lambda: parse_volume(value, VOLUME),
        "attach": lambda: parse_attachment(value, VOLUME, ID),
        "list_attachments": lambda: parse_attachments(value, VOLUME),
        "initialize_connection": lambda: parse_connection(value, volume, ID),
        "get_status": lambda: parse_uid(value),
    }
    return parsers[method]()


def test_the_real_answers_are_taken() -> None:
    volume = parse("show_volume", answer("show_volume"))
    assert volume == VolumeInfo(VOLUME, "/srv/vol-1", 1 << 20, "available", False, TARGET, SERIAL)
    row = parse("attach", answer("attach"))
    assert (row.id, row.state, row.mode, row.owner, row.host) == (ID, "attached", "rw", 0, "host-a")
    portals = ("127.0.0.1:3260", "[::1]:3260")
    info = parse("initialize_connection", answer("initialize_connection"))
    assert info == IscsiInfo(TARGET, portals, 0, "volattach-1", PASSWORD)
    assert PASSWORD not in repr(info)
    assert parse("initialize_connection", answer("initialize_connection", "local")) == LocalInfo("/srv/vol-1")


USED = [
    place
    for volume_type in ("iscsi", "local")
    for method in ("show_volume", "attach", "list_attachments", "initialize_connection")
    for place in places(answer(method, volume_type), method)
    if not UNUSED & set(place.path) and place.path[-2:-1] != ("connector",)
]


@pytest.mark.parametrize("place", sorted(set(USED), key=str), ids=str)
def test_no_evil_value_is_taken(place: Place) -> None:
    volume_type = "local" if "device_path" in place.path else "iscsi"
    good = answer(place.method, volume_type)
    for evil in EVIL:
        bad = exchanged(good, place.path, evil)
        if bad == good or may_be(place, evil):
            continue
        with pytest.raises(UntrustedAnswer, match=r"^the daemon's answer is refused: .* must be "):
            raise AssertionError(f"{place} took {evil!r}: {parse(place.method, bad)!r}")


def may_be(place: Place, evil: Any) -> bool:
    """Whether the value is one that the place may have, though it was meant to be evil."""
    last = place.path[-1] if place.path else None
    texts = isinstance(evil, str) and evil.isprintable() and 0 < len(evil) < 256
    return (
        (last in OPTIONAL and evil is None)
        or (last == "connector" and isinstance(evil, dict))
        or (last in ("instance_uuid", "host_name") and (texts or evil == "\ufeff"))
        or (last == "size" and type(evil) is int and evil >= 0)
        or (last == "multiattach" and isinstance(evil, bool))
        or (last in ("auth_username", "auth_password") and evil in HARMLESS)
        or (place.path == () and place.method == "list_attachments" and evil == [])
        or (last == "path" and evil in ("/", "/../../../tmp/x"))
    )


@pytest.mark.parametrize("evil", EVIL, ids=ascii)
def test_the_only_portal_is_checked_like_the_first_of_several(evil: Any) -> None:
    good = answer("initialize_connection")
    data = {key: value for key, value in good["data"].items() if not key.startswith("target_") or key[-1] != "s"}
    assert parse("initialize_connection", {**good, "data": data}).portals == ("127.0.0.1:3260",)
    with pytest.raises(UntrustedAnswer, match="target_portal"):
        parse("initialize_connection", {**good, "data": {**data, "target_portal": evil}})


def test_an_answer_about_something_else_is_refused() -> None:
    other = "00000000-0000-4000-8000-000000000002"
    for method, path, value in (
        ("show_volume", ("volume",), "vol-2"),
        ("attach", ("volume",), "vol-2"),
        ("attach", ("attachment_id",), other),
        ("list_attachments", (0, "volume"), "vol-2"),
        ("initialize_connection", ("attachment_id",), other),
        ("initialize_connection", ("data", "target_iqn"), TARGET + "0"),
        ("initialize_connection", ("data", "target_iqns", 1), TARGET + "0"),
        ("initialize_connection", ("data", "target_luns", 1), 1),
    ):
        bad = exchanged(answer(method), path, value)
        with pytest.raises(UntrustedAnswer, match="as elsewhere in the daemon's answers"):
            parse(method, bad)
    with pytest.raises(UntrustedAnswer, match="device_path"):
        parse(
            "initialize_connection", exchanged(answer("initialize_connection", "local"), ("data", "device_path"), "/x")
        )


def test_portals_are_bounded_in_number() -> None:
    many = ["127.0.0.1:3260"] * (MAX_PORTALS + 1)
    with pytest.raises(UntrustedAnswer, match=f"a list of 1 to {MAX_PORTALS}"):
        parse("initialize_connection", exchanged(answer("initialize_connection"), ("data", "target_portals"), many))


def test_an_error_shows_the_value_in_ascii_and_cut_and_no_secret() -> None:
    with pytest.raises(UntrustedAnswer) as raised:
        parse("show_volume", exchanged(answer("show_volume"), ("serial",), "\x1b]0;é" + "x" * 10_000))
    assert "serial is '\\x1b]0;\\xe9" in raised.value.message
    assert raised.value.message.isprintable() and len(raised.value.message) < 250
    with pytest.raises(UntrustedAnswer) as raised:
        parse("initialize_connection", exchanged(answer("initialize_connection"), ("data", "auth_password"), "p\nq"))
    assert "p\\nq" not in str(raised.value) and "auth_password" in raised.value.message


@pytest.mark.parametrize(
    "evil", ["\n", "\x1b[2J", "x" * 5000, {"\n": 1}, [["\x7f"]], {"a": {"b": ["\u2028"]}}], ids=ascii
)
def test_data_of_another_kind_has_no_control_characters(evil: Any) -> None:
    volume = parse_volume(answer("show_volume"))
    info = {"driver_volume_type": "rbd", "attachment_id": ID, "data": {"name": "pool/é", "n": [1, None, True]}}
    assert isinstance(parse_connection(info, volume, ID), OtherInfo)
    with pytest.raises(UntrustedAnswer):
        parse_connection({**info, "data": {"name": evil}}, volume, ID)


@pytest.mark.parametrize("good", ["127.0.0.1:3260", "192.0.2.1:1", "[::1]:65535", "[2001:db8::1]:3260"])
def test_a_portal_is_an_address_and_a_port(good: str) -> None:
    assert is_portal(good)


def test_the_parts_cannot_be_made_of_evil_values_either() -> None:
    with pytest.raises(UntrustedAnswer):
        IscsiInfo("../x", ("127.0.0.1:3260",), 0, "u", "p")
    with pytest.raises(UntrustedAnswer):
        AttachmentInfo("x", VOLUME, "attached", "rw", 0)


@pytest.mark.parametrize("name", ["../x", "", "A", "x\n", "-x", "x" * 64, "x/y"])
def test_a_name_that_the_caller_gave_is_checked_too(name: str) -> None:
    with pytest.raises(InvalidInput, match="is not a volume's name"):
        check_name(name)
