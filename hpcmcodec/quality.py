"""The quality of a file in its three units: 0 to 100 for people, hundredths of that in files, 0 to 1 in the model."""

from __future__ import annotations


class Quality:
    """A quality. `hundredths`, 0..10000, is the integer that files store and that the exact operations compute with.

    Raises ValueError for a number outside 0..10000.
    """

    __slots__ = ("hundredths",)

    def __init__(self, hundredths: int) -> None:
        if not 0 <= hundredths <= 10000:
            raise ValueError(f"quality {hundredths} is not in 0..10000")
        self.hundredths = hundredths

    @classmethod
    def of(cls, percent: float) -> Quality:
        """The quality `percent`, from 0 to 100, rounded to a hundredth. Raises ValueError for one out of this range."""
        if not 0 <= percent <= 100:
            raise ValueError(f"quality is 0 to 100, not {percent}")
        return cls(round(percent * 100))

    @classmethod
    def of_unit(cls, q: float) -> Quality:
        """The quality `q`, from 0 to 1, rounded to 1/10000. Raises ValueError for one out of this range."""
        return cls(round(q * 10000))

    @property
    def percent(self) -> float:
        """The quality from 0 to 100, for people."""
        return self.hundredths / 100

    @property
    def unit(self) -> float:
        """The quality from 0 to 1, at which the model's gains and lambda are interpolated."""
        return self.hundredths / 10000

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Quality) and self.hundredths == other.hundredths

    def __lt__(self, other: Quality) -> bool:
        return self.hundredths < other.hundredths

    def __hash__(self) -> int:
        return hash(self.hundredths)

    def __repr__(self) -> str:
        return f"Quality({self.hundredths})"
