"""os-brick, Cinder's own initiator library, takes our connection info as it is, and leaves nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest.inside.agent.compute import leftovers
from tests.guest.inside.initiator import read_back, write_pattern
from tests.guest.inside.program import Program

MY_IP = "127.0.0.1"


@pytest.fixture(scope="module")
def brick() -> Iterator[Any]:
    """os-brick's connector module, in this process: it is root already."""
    import os_brick  # type: ignore[import-not-found]
    from os_brick import privileged
    from os_brick.initiator import connector  # type: ignore[import-not-found]
    from oslo_config import cfg  # type: ignore[import-not-found]

    cfg.CONF([], project="test")
    os_brick.setup(cfg.CONF)
    cfg.CONF.set_override("lock_path", "/tmp/os-brick", group="os_brick")
    os.makedirs("/tmp/os-brick", exist_ok=True)
    privileged.default.set_client_mode(False)
    no_smbios = Path("/usr/local/sbin/dmidecode")  # what os-brick asks for the system's UUID; a guest has none
    no_smbios.write_text("#!/bin/sh\nexit 1\n")
    no_smbios.chmod(0o755)
    yield connector


@pytest.mark.parametrize("mode", ["rw", "ro"])
def test_os_brick_connects_and_disconnects_with_our_connection_info(
    mode: str, brick: Any, program: Program, volume: str
) -> None:
    told = brick.get_connector_properties("sudo", MY_IP, multipath=False, enforce_multipath=False)
    program.call("reserve_volume", volume=volume, mode=mode)
    info = program.call("initialize_connection", volume=volume, connector=told)
    initiator = brick.InitiatorConnector.factory(info["driver_volume_type"].upper(), "sudo", use_multipath=False)
    device = initiator.connect_volume(info["data"])
    disk = Path(device["path"]).resolve()
    program.call("attach", volume=volume, host_name=told["host"])
    assert device["scsi_wwn"].startswith("36001405")
    if mode == "rw":
        pattern = write_pattern(disk, seed=7)
        assert read_back(disk, len(pattern)) == pattern
    else:
        assert Path("/sys/block", disk.name, "ro").read_text().strip() == "1"
    program.call("begin_detaching", volume=volume)
    initiator.disconnect_volume(info["data"], device)
    program.call("terminate_connection", volume=volume, connector=told)
    assert program.call("detach", volume=volume)["status"] == "available"
    assert leftovers() == []
