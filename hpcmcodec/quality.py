"""The quality of a file in its three units: 0 to 100 for people, hundredths of that in files, 0 to 1 in the model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Quality:
    """hundredths: 0..10000, what files store and the exact path computes with. Raises ValueError beyond."""

    hundredths: int

    def __post_init__(self) -> None:
        if not 0 <= self.hundredths <= 10000:
            raise ValueError(f"quality {self.hundredths} is not in 0..10000")

    @classmethod
    def of(cls, percent: float) -> Quality:
        """From 0 to 100, rounded to a hundredth. Raises ValueError beyond."""
        if not 0 <= percent <= 100:
            raise ValueError(f"quality is 0 to 100, not {percent}")
        return cls(round(percent * 100))

    @classmethod
    def of_unit(cls, q: float) -> Quality:
        """From 0 to 1, rounded to 1/10000. Raises ValueError beyond."""
        return cls(round(q * 10000))

    @property
    def percent(self) -> float:
        """0 to 100."""
        return self.hundredths / 100

    @property
    def unit(self) -> float:
        """0 to 1: where the model's gains and lambda are interpolated."""
        return self.hundredths / 10000
