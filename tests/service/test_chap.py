from __future__ import annotations

import pwd
from dataclasses import replace
from typing import Any

import pytest

from tests.support import HOST_A, HOST_B, attachment_id, connector, new_attachment
from volattachd.errors import ConfigError, InvalidVolumeAttachMode, PermissionDenied
from volattachd.lifecycle import GRANTED
from volattachd.model import Attachment, Mode, State
from volattachd.service.chap import InitiatorBindings, new_secret, secret_for

ROW = new_attachment(1)
LIVE = [state for state in State if state is not State.GONE]


def neighbour(state: State = State.ATTACHED, **members: Any) -> Attachment:
    row = new_attachment(2, state=state, **members)
    return row if state in GRANTED else replace(row, secret=None)


def test_a_secret_is_new_for_each_attachment() -> None:
    assert secret_for(ROW, HOST_A, []) != secret_for(ROW, HOST_A, [])
    assert secret_for(ROW, HOST_A, []).username == f"volattach-{ROW.id}"


def test_a_password_has_124_random_bits_and_begins_with_a_letter() -> None:
    made = {new_secret(ROW.id).password for _ in range(50)}
    assert len(made) == 50
    assert {len(password) for password in made} == {32}
    assert {password[0] for password in made} == {"s"}


@pytest.mark.parametrize("state", GRANTED)
def test_attachments_of_one_owner_and_one_initiator_share_it(state: State) -> None:
    other = neighbour(state)
    assert secret_for(ROW, HOST_A, [other]) == other.secret


@pytest.mark.parametrize("state", GRANTED)
def test_another_owner_is_refused_with_the_reason_and_what_to_do(state: State) -> None:
    with pytest.raises(PermissionDenied, match=f"{HOST_A} belongs to uid 1001 there") as caught:
        secret_for(ROW, HOST_A, [neighbour(state, owner=1001)])
    assert "[initiators]" in str(caught.value.correction)


def test_another_owner_is_refused_also_behind_an_attachment_of_ones_own() -> None:
    own, others = neighbour(), replace(neighbour(owner=1001), id=attachment_id(3))
    for order in ([own, others], [others, own]):
        with pytest.raises(PermissionDenied):
            secret_for(ROW, HOST_A, order)


@pytest.mark.parametrize("owner", [1000, 1001])
@pytest.mark.parametrize("state", [State.RESERVED, State.DISCONNECTED])
def test_an_attachment_without_access_neither_shares_nor_refuses(state: State, owner: int) -> None:
    row = replace(neighbour(state, owner=owner), connector=connector())
    assert secret_for(ROW, HOST_A, [row]).username == f"volattach-{ROW.id}"


def test_another_initiator_has_a_secret_of_its_own_whoever_owns_it() -> None:
    for owner in (1000, 1001):
        assert secret_for(ROW, HOST_B, [neighbour(owner=owner)]).username == f"volattach-{ROW.id}"


def test_one_host_has_one_mode() -> None:
    with pytest.raises(InvalidVolumeAttachMode, match="already has ro access"):
        secret_for(ROW, HOST_A, [neighbour(mode=Mode.RO)])


def test_a_name_that_is_bound_is_for_its_users_alone() -> None:
    bindings = InitiatorBindings([(HOST_A, ("root", "1000"))])
    bindings.check(ROW, HOST_A)
    bindings.check(replace(ROW, owner=0), HOST_A)
    with pytest.raises(PermissionDenied, match="bound to other users than uid 1001"):
        bindings.check(replace(ROW, owner=1001), HOST_A)
    bindings.check(replace(ROW, owner=1001), HOST_B)


def test_root_has_no_right_to_a_name_that_is_bound_to_another() -> None:
    with pytest.raises(PermissionDenied):
        InitiatorBindings([(HOST_A, ("1000",))]).check(replace(ROW, owner=0), HOST_A)


def test_a_name_cannot_be_bound_to_a_user_that_does_not_exist() -> None:
    name = "no-such-user"
    assert name not in {entry.pw_name for entry in pwd.getpwall()}
    with pytest.raises(ConfigError, match=f"initiators.{HOST_A}: there is no user '{name}'"):
        InitiatorBindings([(HOST_A, ("root", name))])
