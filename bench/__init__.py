"""Measurements: what things cost, for people to read. No test depends on a time.

``python -m bench`` (``make bench``) sets volattachd beside its peers, in one guest and one run: ``inside`` runs in the
guest and gives numbers; ``report`` and ``plots`` make docs/performance/ of them. ``smp`` is a second guest, with two
processors, and ``together`` what runs in it.
"""
