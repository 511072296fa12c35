from __future__ import annotations

from volattachd.agent.inquiry import naa_of

NAA = bytes.fromhex("6001405d4bd3db5f06841329bef7a412")
TEXT = b"LIO-ORG volume:6f1c8a52"


def designator(kind: int, code_set: int, body: bytes) -> bytes:
    return bytes((code_set, kind, 0, len(body))) + body


def test_the_naa_identifier_is_found_wherever_it_stands() -> None:
    naa, text = designator(3, 1, NAA), designator(1, 2, TEXT)
    assert naa_of(naa + text) == naa_of(text + naa) == NAA.hex()


def test_a_page_without_one_or_cut_short_gives_none() -> None:
    assert naa_of(b"") == naa_of(designator(1, 2, TEXT)) == naa_of(b"\1\3\0") == ""
