from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support import ADMIN, AGENT, OTHER_AGENT, Rig, Service, attachment_id, connector, in_thread, new_attachment
from volattachd.errors import Busy
from volattachd.model import State
from volattachd.service.holdings import Holdings


def test_a_user_holds_as_many_as_the_limit_and_others_are_not_affected() -> None:
    holdings = Holdings([new_attachment()], 2)
    holdings.add(new_attachment())
    with pytest.raises(Busy, match="uid 1000 holds 2 attachments") as caught:
        holdings.add(new_attachment())
    assert "raise the limit" in str(caught.value.correction)
    holdings.add(replace(new_attachment(), owner=1001))
    holdings.remove(new_attachment())
    holdings.add(new_attachment())
    with pytest.raises(Busy):
        holdings.add(new_attachment())


def test_of_many_reservations_at_once_no_more_are_made_than_the_limit_allows(rig: Rig) -> None:
    names = [rig.register(f"vol-{n}") for n in range(8)]
    rig.service = Service(replace(rig.config, attachments_per_uid=3), rig.journal, rig.driver)

    def reserve(volume: str) -> bool:
        try:
            rig.service.reserve_volume(AGENT, volume)
        except Busy:
            return False
        return True

    results = [in_thread(lambda n=n: reserve(n)) for n in names]  # type: ignore[misc]
    assert [result() for result in results].count(True) == 3
    assert len(rig.journal.attachments) == 3


@pytest.mark.parametrize("state", [state for state in State if state is not State.GONE])
def test_an_attachment_in_any_state_counts_and_also_after_a_restart(rig: Rig, state: State) -> None:
    rig.config = replace(rig.config, attachments_per_uid=1)
    rig.restart()
    rig.register()
    rig.register("vol-2")
    rig.reach(state)
    for restart in (False, True):
        if restart:
            rig.restart()
        with pytest.raises(Busy):
            rig.service.reserve_volume(AGENT, "vol-2")
    rig.service.reserve_volume(OTHER_AGENT, "vol-2")


def test_every_way_to_the_end_makes_room(rig: Rig) -> None:
    rig.config = replace(rig.config, attachments_per_uid=1)
    rig.restart()
    rig.register()
    rig.reach(State.GONE, number=1)
    rig.service.reserve_volume(AGENT, "vol-1", attachment_id(2))
    rig.service.unreserve_volume(AGENT, "vol-1", attachment_id(2))
    rig.reach(State.CONNECTED, number=3)
    rig.service.terminate_connection(AGENT, "vol-1", connector(), attachment_id=attachment_id(3))
    rig.service.reserve_volume(AGENT, "vol-1", attachment_id(4), ttl=1e-9)
    rig.service.expire_reservations()
    rig.service.reserve_volume(AGENT, "vol-1", attachment_id(5))


def test_a_reservation_that_is_sent_again_needs_no_room(rig: Rig) -> None:
    rig.config = replace(rig.config, attachments_per_uid=1)
    rig.restart()
    rig.register()
    first = rig.service.reserve_volume(AGENT, "vol-1", attachment_id(1))
    assert rig.service.reserve_volume(AGENT, "vol-1", attachment_id(1)) == first
    assert rig.service.show_attachment(ADMIN, attachment_id(1)) == first
