from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from volattachd.config import Config, keys, load
from volattachd.errors import ConfigError

#: For each key a value that is not its default, as TOML and as it is read.
GOOD: dict[str, tuple[str, Any]] = {
    "daemon.state_dir": ('"/srv/state"', Path("/srv/state")),
    "daemon.socket": ('"/run/x.sock"', Path("/run/x.sock")),
    "access.admin": ('["alice", "%wheel", "1000"]', ("alice", "%wheel", "1000")),
    "access.agent": ("[]", ()),
    "access.provisioner": ('["%adm"]', ("%adm",)),
    "access.reader": ('["%adm"]', ("%adm",)),
    "target.driver": ('"memory"', "memory"),
    "target.iqn_prefix": ('"iqn.2030-12.com.example:sub"', "iqn.2030-12.com.example:sub"),
    "target.portals": ('["192.0.2.1", "eth0:3261"]', ("192.0.2.1", "eth0:3261")),
    "limits.connections": ("1", 1),
    "limits.connections_per_uid": ("65536", 65536),
    "limits.admin_connections": ("1", 1),
    "limits.max_held_bytes_per_uid": ("16777216", 16777216),
    "limits.max_logged_refusals": ("10000", 10000),
    "limits.max_batch": ("1", 1),
    "limits.max_answer_bytes": ("2097152", 2097152),
    "limits.max_page_bytes": ("65536", 65536),
    "limits.max_connector_bytes": ("1024", 1024),
    "limits.max_connector_members": ("16", 16),
    "limits.message_seconds": ("0.1", 0.1),
    "limits.unread_seconds": ("3600", 3600.0),
    "limits.call_seconds": ("1", 1.0),
    "limits.attachments_per_uid": ("1_000_000", 1_000_000),
    "reservations.ttl": ("86400", 86400.0),
    "reconcile.interval": ("0.5", 0.5),
    "history.days": ("1", 1),
    "history.rows": ("100_000_000", 100_000_000),
    "history.max_bytes": ("1048576", 1 << 20),
}

TEXTS = ("5", "true", "1.5", "[]", "{}", '""', "1979-05-27", "[1]", '["a", 1]')
NUMBERS = ('"5"', "true", "[]", "{}", "nan", "inf", "-inf", "-1", "0", "1979-05-27", "99999999999999999999")
#: For each key values that do not fit.
BAD: dict[str, tuple[str, ...]] = {
    "daemon.state_dir": (*TEXTS, '"relative"', '"./x"'),
    "daemon.socket": (*TEXTS, '"x.sock"'),
    "access.admin": ('"alice"', "5", "[5]", '["a", 1]', '[""]', "{}", "true"),
    "access.agent": ('"%volattach"', "[true]", "[[]]", "1.5"),
    "access.provisioner": ('"a"', "[5]", "[{}]"),
    "access.reader": ('"a"', "[5]", "[{}]"),
    "target.driver": TEXTS,
    "target.iqn_prefix": (
        *TEXTS,
        '"example.com"',
        '"iqn.2026-13.com.example"',
        '"iqn.2026-00.com.example"',
        '"iqn.26-01.com.example"',
        '"IQN.2026-11.com.example"',
        '"iqn.2026-11.com.Example"',
        '"iqn.2026-11.com.example:"',
        '"iqn.2026-11.com.example/x"',
        '"iqn.2026-11."',
        '"iqn.2026-11.com example"',
        '"iqn.2026-11.com\\n"',
        f'"iqn.2026-11.{"a" * 139}"',
    ),
    "target.portals": ('"192.0.2.1"', "3260", "[3260]", '[""]'),
    "limits.connections": (*NUMBERS, "1.0", "65537"),
    "limits.connections_per_uid": (*NUMBERS, "2.5", "65537"),
    "limits.admin_connections": (*NUMBERS, "1.0", "65537"),
    "limits.max_held_bytes_per_uid": (*NUMBERS, "16777215", "1073741825"),
    "limits.max_logged_refusals": (*NUMBERS, "1.0", "10001"),
    "limits.max_batch": (*NUMBERS, "1.0", "101"),
    "limits.max_answer_bytes": (*NUMBERS, "2097151", "8388609"),
    "limits.max_page_bytes": (*NUMBERS, "65535", "1048577"),
    "limits.max_connector_bytes": (*NUMBERS, "1023", "16385"),
    "limits.max_connector_members": (*NUMBERS, "15", "65"),
    "limits.message_seconds": (*NUMBERS, "0.09", "3600.1"),
    "limits.unread_seconds": (*NUMBERS, "0.09", "3601"),
    "limits.call_seconds": (*NUMBERS, "0.09", "3601"),
    "limits.attachments_per_uid": (*NUMBERS, "1.0", "1000001"),
    "reservations.ttl": (*NUMBERS, "0.9", "86400.1"),
    "reconcile.interval": (*NUMBERS, "0.4", "3601"),
    "history.days": (*NUMBERS, "0.5", "36501"),
    "history.rows": (*NUMBERS, "999", "100000001"),
    "history.max_bytes": (*NUMBERS, "1048575", "1099511627777"),
}

KEYS = [f"{section}.{key}" for section, key, _, _ in keys()]


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "volattachd.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refused(tmp_path: Path, text: str | bytes) -> str:
    """The words with which a file is refused, without its name: ``LINE: …`` where there is one."""
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}:")
    return str(caught.value).removeprefix(f"{path}:")


def test_the_tables_of_these_tests_have_every_key() -> None:
    assert list(GOOD) == list(BAD) == KEYS
    assert len({key.partition(".")[2] for key in KEYS}) == len(KEYS)
    assert len(fields(Config)) == len(KEYS) + 1  # and [initiators], whose keys are names


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", *(f"[{key.partition('.')[0]}]\n" for key in KEYS)])
def test_a_file_that_says_nothing_gives_every_default(tmp_path: Path, text: str) -> None:
    assert load(written(tmp_path, text)) == Config()


def test_every_default_is_a_value_that_the_file_could_give(tmp_path: Path) -> None:
    for section, key, summary, default in keys():
        value = list(default) if isinstance(default, tuple) else default
        shown = str(value) if isinstance(value, (int, float, list)) else f'"{value}"'
        assert getattr(load(written(tmp_path, f"[{section}]\n{key} = {shown}\n")), key) == default
        assert summary


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_taken_and_changes_itself_alone(tmp_path: Path, key: str) -> None:
    section, _, name = key.partition(".")
    text, value = GOOD[key]
    found = load(written(tmp_path, f"[{section}]\n{name} = {text}\n"))
    assert getattr(found, name) == value
    assert value != getattr(Config(), name)
    assert [f.name for f in fields(Config) if getattr(found, f.name) != getattr(Config(), f.name)] == [name]


def test_all_keys_together_are_taken(tmp_path: Path) -> None:
    found = load(written(tmp_path, "".join(f"{key} = {text}\n" for key, (text, _) in GOOD.items())))
    assert found == Config(**{key.partition(".")[2]: value for key, (_, value) in GOOD.items()})


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD.items() for value in values])
def test_a_value_that_does_not_fit_is_refused_with_line_and_key(tmp_path: Path, key: str, value: str) -> None:
    section, _, name = key.partition(".")
    told = refused(tmp_path, f"# a comment\n\n[{section}]\n# another\n{name} = {value}\n")
    assert re.match(rf"5: {re.escape(key)}: must ", told), told


@pytest.mark.parametrize("section", sorted({key.partition(".")[0] for key in KEYS}))
def test_an_unknown_key_is_refused_and_the_known_ones_are_named(tmp_path: Path, section: str) -> None:
    told = refused(tmp_path, f"\n[{section}]\nmispelt = 1\n")
    assert told.startswith(f"3: {section}.mispelt: unknown key")
    for key in KEYS:
        if key.startswith(section + "."):
            assert key.partition(".")[2] in told


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_another_section_is_unknown(tmp_path: Path, key: str) -> None:
    section, _, name = key.partition(".")
    other = "limits" if section != "limits" else "daemon"
    assert refused(tmp_path, f"[{other}]\n{name} = {GOOD[key][0]}\n").startswith(f"2: {other}.{name}: unknown key")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[nonsense]\n", 1),
        ("\n\n[nonsense]\nstate_dir = 1\n", 3),
        ("[daemon]\n[nonsense]\n", 2),
        ('[ "nonsense" ]\n', 1),
        ("\nnonsense = 1\n", 2),
        ("\nnonsense.key = 1\n", 2),
        ('\n"nonsense" = {}\n', 2),
    ],
)
def test_an_unknown_section_is_refused_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    told = refused(tmp_path, text)
    assert told.startswith(f"{line}: ")
    assert "nonsense" in told


@pytest.mark.parametrize("section", sorted({key.partition(".")[0] for key in KEYS}))
@pytest.mark.parametrize("value", ["1", '"x"', "[]", "true"])
def test_a_key_in_place_of_a_section_is_refused(tmp_path: Path, section: str, value: str) -> None:
    assert refused(tmp_path, f"\n{section} = {value}\n").startswith(f"2: '{section}' must be a section")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\ndaemon.state_dir = 5\n", 2),
        ('\n"daemon".state_dir = 5\n', 2),
        ('\ndaemon."state_dir" = 5\n', 2),
        ("\n'daemon'.'state_dir' = 5\n", 2),
        ('[daemon]\n\n"state_dir" = 5\n', 3),
        ("[daemon]\n'state_dir'=5\n", 2),
        ("[daemon]\n\tstate_dir\t=\t5\n", 2),
        ('["daemon"]\nstate_dir = 5\n', 2),
        ("[ daemon ]\nstate_dir = 5\n", 2),
        ("[ 'daemon' ] # the daemon\nstate_dir = 5 # five\n", 2),
        ("[daemon]\r\n\r\nstate_dir = 5\r\n", 3),
        ("[target]\nportals = [\n  'a',\n]\n[daemon]\nstate_dir = [\n  5,\n]\n", 6),
        ('[access]\n# state_dir = 1\n[daemon]\nsocket = "/s"\nstate_dir = 5\n', 5),
    ],
)
def test_however_a_key_is_written_its_line_is_named(tmp_path: Path, text: str, line: int) -> None:
    assert refused(tmp_path, text).startswith(f"{line}: daemon.state_dir: must be an absolute path, not ")


@pytest.mark.parametrize(
    "text", ["\ndaemon = { state_dir = 5 }\n", "\ndaemon . state_dir = 5\n", '\n"da\\u0065mon".state_dir = 5\n']
)
def test_a_key_that_is_written_in_a_rare_way_is_named_with_some_line(tmp_path: Path, text: str) -> None:
    assert re.match(r"[12]: daemon\.state_dir: must be an absolute path", refused(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    [
        "[daemon",
        "daemon]",
        "x",
        "[daemon]\nstate_dir = \n",
        '[daemon]\nsocket = "/a"\nsocket = "/b"\n',
        "\x00",
        "[a]\n[a]\n",
    ],
)
def test_what_is_not_toml_is_refused(tmp_path: Path, text: str) -> None:
    assert refused(tmp_path, text).startswith(" is not TOML: ")


def test_what_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refused(tmp_path, b'[daemon]\nsocket = "/\xff"\n')


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / name)


def test_the_longest_prefix_leaves_room_for_a_whole_name(tmp_path: Path) -> None:
    prefix = "iqn.2026-11." + "a" * 138
    assert load(written(tmp_path, f'[target]\niqn_prefix = "{prefix}"\n')).iqn_prefix == prefix
    assert len(f"{prefix}:{'v' * 63}.{'0' * 8}") <= 223


# [initiators].

NAME = "iqn.2026-11.com.example:alpha"


def test_names_of_initiators_are_bound_to_one_user_or_to_several(tmp_path: Path) -> None:
    text = f'[initiators]\n"{NAME}" = "alice"\n"{NAME.upper()}2" = ["bob", "1000"]\n'
    assert load(written(tmp_path, text)).initiators == ((NAME, ("alice",)), (f"{NAME}2", ("bob", "1000")))


@pytest.mark.parametrize("users", ["5", "[]", "[5]", '""', '["alice", ""]', "{}", "true"])
def test_a_binding_to_what_is_no_user_is_refused_with_its_line(tmp_path: Path, users: str) -> None:
    told = refused(tmp_path, f'\n[initiators]\n"{NAME}" = {users}\n')
    assert told.startswith(f"3: initiators.{NAME}: must be a user's name, or a list of names")


@pytest.mark.parametrize("name", ["alpha", "iqn.2026-11.com.example:a_b", "x" * 300])
def test_a_binding_of_what_is_no_initiators_name_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    told = refused(tmp_path, f'\n[initiators]\n"{name}" = "alice"\n')
    assert told.startswith(f"3: initiators.{name}: must be the name of an initiator")


def test_a_name_is_bound_once_in_whatever_letters(tmp_path: Path) -> None:
    told = refused(tmp_path, f'[initiators]\n"{NAME}" = "alice"\n"{NAME.upper()}" = "bob"\n')
    assert told.startswith(f"3: initiators.{NAME.upper()}: the same name")


@pytest.mark.parametrize("value", ["1", '"x"', "[]", "true"])
def test_a_key_in_place_of_the_section_of_initiators_is_refused(tmp_path: Path, value: str) -> None:
    assert refused(tmp_path, f"\ninitiators = {value}\n").startswith("2: 'initiators' must be a section")
