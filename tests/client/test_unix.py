from __future__ import annotations

from pathlib import Path

from volattachd.client.unix import DEFAULT_SOCKET, how_to_start


def test_the_unit_is_named_only_where_there_is_one(tmp_path: Path) -> None:
    directories = [str(tmp_path / "etc"), str(tmp_path / "lib")]
    assert how_to_start(DEFAULT_SOCKET, directories) == "start volattachd on this host as root"
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/volattachd.socket").touch()
    assert how_to_start(DEFAULT_SOCKET, directories) == "start it: systemctl start volattachd.socket"


def test_the_unit_is_not_named_for_a_socket_that_it_does_not_make(tmp_path: Path) -> None:
    (tmp_path / "volattachd.socket").touch()
    assert "systemctl" not in how_to_start("/srv/other.sock", [str(tmp_path)])
