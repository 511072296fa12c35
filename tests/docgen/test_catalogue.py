from __future__ import annotations

import re

from docgen.catalogue import write_catalogue
from volattachd.telemetry.messages import kinds

ENTRIES = re.split(r"^-- ", write_catalogue(), flags=re.MULTILINE)[1:]


def test_each_kind_has_an_entry_by_its_id_and_there_is_none_besides() -> None:
    assert [entry.partition("\n")[0] for entry in ENTRIES] == [kind.id for kind in kinds().values()]


def test_an_entry_is_a_head_an_empty_line_and_the_explanation() -> None:
    for entry, kind in zip(ENTRIES, kinds().values(), strict=True):
        head, _, text = entry.partition("\n\n")
        names = [line.partition(":")[0] for line in head.splitlines()[1:]]
        assert names == ["Subject", "Defined-By", "Documentation"]
        assert f"Subject: {kind.subject}\n" in head
        assert " ".join(text.split()) == kind.explanation
        assert all(len(line) <= 78 for line in text.splitlines())
