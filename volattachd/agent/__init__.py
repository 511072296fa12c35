"""The agent: from a volume's name to its device on this host, and back.

from volattachd.agent import attached

with attached("vol-1") as volume:
    print(volume.path)
"""

from volattachd.agent.agent import Agent, Attached, Detached, attached
from volattachd.agent.retry import SentAgain

__all__ = ["Agent", "Attached", "Detached", "SentAgain", "attached"]
