"""What happens in the demo, in order, and what must be true after each step. Anything else is a Surprise."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

from demo.initiators import PATTERN, SIZE, Initiator, Surprise, choose
from demo.screen import Screen
from demo.stage import VOLUME, Stage

HOST = "iqn.2026-11.org.volattachd.demo:host"
OTHER_HOST = "iqn.2026-11.org.volattachd.demo:other"


class Story:
    """One run."""

    def __init__(self, stage: Stage, screen: Screen) -> None:
        self._stage = stage
        self._screen = screen
        self.initiator: Initiator | None = None
        self.calls = 0
        self.refused = 0
        self.seconds = 0.0

    def tell(self) -> None:
        """All of it. Raises Surprise, or the error of a call that should have been answered."""
        initiator = self.initiator = self._begin()
        attachment = {"volume": VOLUME, "attachment_id": str(uuid.uuid4())}
        connector = {"initiator": initiator.name, "host": "demo-host", "ip": "127.0.0.1", "multipath": False}
        self._six("reserve_volume", {**attachment, "mode": "rw"}, "reserved")
        data = self._connect(initiator, {**attachment, "connector": connector})
        self._six("attach", {**attachment, "host_name": "demo-host", "mount_point": "/dev/vdb"}, "attached")
        self._use(initiator, data)
        self._six("begin_detaching", attachment, "detaching")
        self._screen.good(initiator.disconnect())
        self._six("terminate_connection", {**attachment, "connector": connector}, "disconnected")
        self._refused(initiator, data, "the secret that was good a moment ago")
        self._detach(attachment)
        self._look_for_leftovers(initiator, data)
        self._call("   ", "unregister_volume", {"volume": VOLUME})
        if self._stage.stop() != 0:
            raise Surprise("the daemon did not end well")

    def _begin(self) -> Initiator:
        screen, stage = self._screen, self._stage
        screen.title("volattachd: one volume through the six calls, with a real initiator")
        started = time.monotonic()
        status = stage.open()
        initiator = choose(status["driver"], HOST, stage.directory)
        screen.line(f"daemon     python -m volattachd, version {status['version']},")
        screen.line(f"           served {time.monotonic() - started:.2f} s after its start, all in {stage.directory}")
        screen.line(f"target     driver {status['driver']}, portal {', '.join(status['portals'])}")
        screen.line(f"initiator  {initiator.title}")
        screen.line("shown      -> asked, <- answered: what is null or was shown before is left out")
        self._call("   ", "register_volume", {"volume": VOLUME, "path": str(stage.volume)})
        return initiator

    def _connect(self, initiator: Initiator, params: Mapping[str, Any]) -> dict[str, Any]:
        info = self._call("2  ", "initialize_connection", params)
        data: dict[str, Any] = info["data"]
        wrong = {**data, "auth_password": uuid.uuid4().hex}
        self._refused(initiator, wrong, "a wrong secret")
        self._refused(initiator, data, "another initiator with the right secret", OTHER_HOST)
        self._screen.good(initiator.connect(data))
        return data

    def _use(self, initiator: Initiator, data: Mapping[str, Any]) -> None:
        for line in initiator.write_and_read(data):
            self._screen.line(line)
        self._screen.good("what was written came back")
        with self._stage.volume.open("rb") as file:
            if file.read(SIZE) != bytes([PATTERN]) * SIZE:
                raise Surprise(f"{self._stage.volume} does not hold what the initiator wrote")
        self._screen.good(f"{self._stage.volume} holds it")

    def _detach(self, attachment: Mapping[str, Any]) -> None:
        volume = self._call("6  ", "detach", attachment)
        if volume["status"] != "available" or volume["attachments"]:
            raise Surprise(f"the volume is not free after detach: {volume['status']}")

    def _look_for_leftovers(self, initiator: Initiator, data: Mapping[str, Any]) -> None:
        self._screen.good(f"no login any more ({initiator.absence(data)})")
        left = self._stage.left_in_target()
        if left:
            raise Surprise(f"the target still holds {', '.join(left)}")
        looked = "configfs" if self._stage.driver == "lio" else "tgtadm"
        self._screen.good(f"the target is gone: {looked} shows nothing of it")
        differing = self._call("   ", "reconcile", {"dry_run": True})["volumes"]
        if differing:
            raise Surprise(f"journal and target differ: {differing}")

    def _six(self, method: str, params: Mapping[str, Any], state: str) -> None:
        """One of the six calls, and the state that it must lead to."""
        found = self._call(f"{self.calls + 1}  ", method, params)["state"]
        if found != state:
            raise Surprise(f"after {method} the attachment is {found}, not {state}")

    def _call(self, mark: str, method: str, params: Mapping[str, Any]) -> Any:
        started = time.monotonic()
        result = self._stage.call(method, params)
        seconds = time.monotonic() - started
        if "auth_password" in result.get("data", {}):
            self._screen.secrets.add(result["data"]["auth_password"])
        if mark.strip():
            self.calls += 1
            self.seconds += seconds
        self._screen.call(mark, method, params, result, seconds)
        return result

    def _refused(self, initiator: Initiator, data: Mapping[str, Any], what: str, name: str | None = None) -> None:
        words = initiator.refusal(data, name)
        self.refused += 1
        self._screen.good(f"refused: {what} ({words})")
