"""volattachd: attach and detach volumes over iSCSI with six calls, a journal and no cloud."""

__version__ = "0.1.0"
