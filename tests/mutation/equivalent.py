"""The mutants that no test can notice because they behave like the original, each with the reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Equivalent:
    """A mutant by its module, place and change, as ``make mutants`` prints them."""

    module: str
    where: str
    change: str
    reason: str


EQUIVALENT: tuple[Equivalent, ...] = ()
