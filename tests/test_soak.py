from __future__ import annotations

import pytest

from tests.soak import Part


@pytest.mark.parametrize("of", [1, 2, 3, 7])
@pytest.mark.parametrize("whole", [7, 10, 1000])
def test_the_parts_together_are_the_whole(whole: int, of: int) -> None:
    parts = [Part(number, of) for number in range(1, of + 1)]
    assert sum(part.amount(whole) for part in parts) == whole
    assert sorted(item for part in parts for item in part.choose(range(whole))) == list(range(whole))


def test_a_part_of_little_is_not_nothing() -> None:
    assert [Part(number, 4).amount(2) for number in range(1, 5)] == [1, 1, 1, 1]


@pytest.mark.parametrize("text", ["1", "0/4", "5/4", "a/b", "1/", "-1/4"])
def test_a_wrong_part_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a part like 2/4"):
        Part.parse(text)
