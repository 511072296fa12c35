"""Which connectors there are. They are found through the entry-point group ``volattachd.connectors``, ours like
anybody else's; a source tree that was never installed has no entry points, and ours are then found by name.
"""

from __future__ import annotations

from importlib import import_module

from volattachd.agent.connectors.base import Connector, Report
from volattachd.agent.errors import ConnectorUnusable

GROUP = "volattachd.connectors"

#: The same rows as in pyproject.toml; a test compares them.
BUILT_IN = {
    "iscsi": "volattachd.agent.connectors.iscsi:IscsiConnector",
    "local": "volattachd.agent.connectors.local:LocalConnector",
    "qemu": "volattachd.agent.connectors.qemu:QemuConnector",
}


def available() -> dict[str, str]:
    """Every connector's name and where its class is ("module:class"). A third party's may not hide one of ours."""
    from importlib.metadata import entry_points  # slow to load, and to ask: only who looks for others' pays for it

    found = dict(BUILT_IN)
    for entry in entry_points(group=GROUP):
        if BUILT_IN.get(entry.name, entry.value) != entry.value:
            why = f"the connector {entry.name!r} is built in, but {entry.value} claims its name too"
            raise ConnectorUnusable(why, "uninstall the package that does")
        found[entry.name] = entry.value
    return found


def make_connector(name: str, report: Report = lambda line: None) -> Connector:
    """A connector by its name. Raises ConnectorUnusable for an unknown one, naming those that exist."""
    connectors = BUILT_IN if name in BUILT_IN else available()
    if name not in connectors:
        raise ConnectorUnusable(f"there is no connector {name!r}", f"use one of {', '.join(sorted(connectors))}")
    module, _, attribute = connectors[name].partition(":")
    try:
        cls = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConnectorUnusable(f"cannot use the connector {name!r} ({connectors[name]}): {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, Connector)):
        raise ConnectorUnusable(f"the connector {name!r} ({connectors[name]}) is not a Connector")
    return cls(report)
