from __future__ import annotations

import json
from ipaddress import ip_address

import pytest

from tests.support import connector, new_attachment, new_volume
from volattachd.api.methods import ATTACHMENT, CONNECTION, VOLUME
from volattachd.api.views import attachment_view, connection_view, gone_view, volume_view
from volattachd.drivers.base import Portal
from volattachd.model import Condition, Mode, State

LIVE = [state for state in State if state is not State.GONE]


@pytest.mark.parametrize("state", LIVE)
def test_a_view_has_the_members_that_the_method_table_promises_and_no_secret(state: State) -> None:
    row = new_attachment(state=state)
    attachment = attachment_view(row)
    volume = volume_view(new_volume(), [row], [Condition("TargetError", "why", 1.0)])
    assert list(attachment) == list(ATTACHMENT["properties"])
    assert list(volume) == list(VOLUME["properties"])
    assert volume["conditions"] == [{"kind": "TargetError", "message": "why", "since": 1.0}]
    for view in (attachment, volume, gone_view(attachment)):
        assert "password" not in json.dumps(view)


def test_what_is_gone_is_shown_as_it_was_last_seen() -> None:
    last = attachment_view(new_attachment(state=State.DISCONNECTED))
    assert gone_view(last) == {**last, "state": "gone"}
    assert last["state"] == "disconnected"


@pytest.mark.parametrize("multipath", [True, False, None])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("lun", [0, 1])
@pytest.mark.parametrize("mode", Mode)
def test_the_lists_are_given_to_multipath_and_for_several_portals(
    multipath: bool | None, count: int, lun: int, mode: Mode
) -> None:
    portals = [Portal(ip_address(f"2001:db8::{n}")) for n in range(1, count + 1)]
    row = new_attachment(state=State.CONNECTED, connector=connector(multipath=multipath), mode=mode)
    view = connection_view(new_volume(), row, portals, lun)
    assert list(view) == list(CONNECTION["properties"])
    data = view["data"]
    assert (data["target_portal"], data["target_lun"], data["access_mode"]) == ("[2001:db8::1]:3260", lun, mode.value)
    if multipath or count > 1:
        assert data["target_portals"] == [f"[2001:db8::{n}]:3260" for n in range(1, count + 1)]
        assert data["target_iqns"] == [data["target_iqn"]] * count
        assert data["target_luns"] == [lun] * count
    else:
        assert not {"target_portals", "target_iqns", "target_luns"} & set(data)
