"""What the sections of a recipe are made of: types with limits, and rules that sections have in common.

It must not know any one section.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

# Counts and seeds fit into 64 signed bits, as in the ledger, in messages and in keys of random streams.
_LARGEST = 2**63 - 1

PositiveInt = Annotated[int, Meta(ge=1, le=_LARGEST)]
Count = Annotated[int, Meta(ge=0, le=_LARGEST)]
PositiveFloat = Annotated[float, Meta(gt=0)]
NonNegativeFloat = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, lt=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
PositiveShare = Annotated[float, Meta(gt=0, le=1)]


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the sections."""

    def conflicts(self) -> list[str]:
        """Problems that no single key shows, one line each."""
        return []


class ChoiceSection(Section, frozen=True, kw_only=True):
    """Base of the sections whose `name` chooses what is used, and with it which of the other keys may be set.

    A subclass says what it is `called` in a recipe, which keys each choice `takes` and which of these it `needs`. A key
    that no choice names may always be set. None means that the class that is chosen has its own default.
    """

    called: ClassVar[str] = ""
    takes: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    name: str = ""

    def arguments(self) -> dict[str, Any]:
        """What the recipe sets of the keys that the choice takes."""
        return {key: getattr(self, key) for key in self.takes[self.name] if getattr(self, key) is not None}

    def conflicts(self) -> list[str]:
        allowed, needed = self.takes[self.name], self.needs.get(self.name, ())
        others = sorted({key for keys in self.takes.values() for key in keys} - set(allowed))
        return [
            *(
                f"{self.called}.{key}: does not apply to {self.called} {self.name!r}, which takes "
                f"{', '.join(allowed) or 'no other key'}"
                for key in others
                if getattr(self, key) is not None
            ),
            *(
                f"{self.called}.{key}: {self.called} {self.name!r} needs it"
                for key in needed
                if getattr(self, key) is None
            ),
        ]


def exactly_one(section: str, *keys: tuple[str, object]) -> list[str]:
    """A problem unless one of the keys, (name, value), is set."""
    given = [name for name, value in keys if value is not None]
    if len(given) == 1:
        return []
    expected = " and ".join(f"{section}.{name}" for name, _ in keys)
    return [f"{section}: expected exactly one of {expected}, got {'both' if given else 'neither'}"]
