from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from tests.support import new_attachment, new_volume
from volattachd.errors import InvalidInput
from volattachd.model import UUID, VOLUME_ID, Secret, State, parse_initiator


@pytest.mark.parametrize(
    "name",
    [
        "iqn.1993-08.org.debian:01:abc",
        "iqn.2026-11.com.example:host1",
        "iqn.2001-04.com.example",
        "IQN.2001-04.COM.Example:HOST",
        "eui.0123456789abcdef",
        "EUI.0123456789ABCDEF",
        "naa.0123456789abcdef",
        "naa.0123456789abcdef0123456789abcdef",
        "iqn.2001-04." + "a" * 211,
    ],
)
def test_a_name_of_an_initiator_is_taken_in_lower_case(name: str) -> None:
    assert parse_initiator(name) == name.lower()


@pytest.mark.parametrize(
    "name",
    [
        None,
        5,
        True,
        [],
        {},
        b"iqn.2001-04.com.example",
        "",
        "iqn",
        "host",
        "iqn.2001-4.com.example",
        "iqn.2001-04.",
        "iqn.2001-04.com.example:a/b",
        "iqn.2001-04.com.example:../x",
        "iqn.2001-04.com.example:a b",
        "iqn.2001-04.com.example:a,b",
        "iqn.2001-04.com.example:a\n",
        "iqn.2001-04.com.example:a\0",
        "iqn.2001-04.com.example:ä",
        "iqn.2001-04.com.example:\udc80",
        "iqn.2001-04.com.example:a_b",
        " iqn.2001-04.com.example",
        "iqn.2001-04.com.example ",
        "iqn.٢٠٠١-04.com.example",
        "eui.0123456789abcde",
        "eui.0123456789abcdef0",
        "naa.0123456789abcdef0",
        "naa.0123456789abcdeg",
        "iqn.2001-04." + "a" * 212,
        # Lower-casing must not make a name of what was none: these are KELVIN SIGN and I WITH DOT ABOVE.
        "iqn.2001-04.com.example:\u212a\u0130",
    ],
)
def test_what_is_no_name_of_an_initiator_is_refused(name: Any) -> None:
    with pytest.raises(InvalidInput, match="initiator"):
        parse_initiator(name)


@pytest.mark.parametrize("name", ["a", "0", "vol-1", "a.b", "a" * 63, "3f0c5f4e-5a5e-4b6a-9d0c-6c5d4e3f2a1b"])
def test_a_volumes_name_may_be_anything_that_fits_an_iqn(name: str) -> None:
    assert VOLUME_ID.fullmatch(name)


@pytest.mark.parametrize(
    "name", ["", "a" * 64, "A", "-a", "a-", ".a", "a.", "a_b", "a b", "a/b", "a:b", "ä", "a\n", ".."]
)
def test_what_does_not_fit_an_iqn_is_no_volumes_name(name: str) -> None:
    assert not VOLUME_ID.fullmatch(name)


@pytest.mark.parametrize("name", ["", "0" * 36, "00000000-0000-4000-8000-00000000000G", "{0}", "x"])
def test_what_is_not_a_canonical_uuid_is_no_attachments_id(name: str) -> None:
    assert not UUID.fullmatch(name)
    assert not UUID.fullmatch("00000000-0000-4000-8000-00000000000A")
    assert UUID.fullmatch("00000000-0000-4000-8000-00000000000a")


def test_a_secret_is_never_printed() -> None:
    row = new_attachment(state=State.CONNECTED, secret=Secret("user", "hidden"))
    for shown in (repr(row), str(row), repr(row.secret), str(row.secret), f"{row.secret}"):
        assert "hidden" not in shown
    assert "user" in repr(row.secret)


@pytest.mark.parametrize("row", [new_volume(), new_attachment()], ids=["volume", "attachment"])
def test_rows_cannot_be_changed_in_place(row: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.id = "other"


def test_an_attachment_has_an_initiator_once_it_is_connected() -> None:
    assert new_attachment().initiator is None
    initiator = new_attachment(state=State.CONNECTED).initiator
    assert initiator is not None
    assert re.match("iqn", initiator)
