"""Float32 and float64 arithmetic with one defined result, and the elementary functions made of it.

Python's floats are float64. A float32 operation is the float64 operation on float32 operands, rounded to float32:
float64 has more than twice the digits, so that the second rounding never changes the result.
"""

import math
import struct
from array import array
from collections.abc import Iterable

TABLE_LIMIT = 2047
INVERSE_FACTORIALS = [1 / math.factorial(k) for k in range(14)]


def float32s(values: Iterable[float]) -> list[float]:
    """Round each value to float32."""
    return array("f", values).tolist()


def float32(value: float) -> float:
    """Round one value to float32."""
    return float32s((value,))[0]


def clamp(value: int, low: int, high: int) -> int:
    """Limit an integer to low..high."""
    return low if value < low else high if value > high else value


def to_code(value: float, limit: int) -> int:
    """Round to an integer, ties to even, and limit it to +-limit."""
    return clamp(round(value), -limit, limit)


def exp(x: float) -> float:
    """Return the defined approximation of e^x in float64."""
    n = round(x * 1.4426950408889634)
    r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10
    p = INVERSE_FACTORIALS[13]
    for k in range(12, -1, -1):
        p = p * r + INVERSE_FACTORIALS[k]
    return math.ldexp(p, n)


def rsqrt(x: float) -> float:
    """Return the defined approximation of 1 / sqrt(x) in float64."""
    bits: int = struct.unpack("<q", struct.pack("<d", x))[0]
    r: float = struct.unpack("<d", struct.pack("<q", 6910469410427058090 - (bits >> 1)))[0]
    half = x * 0.5
    for _ in range(4):
        r = r * (1.5 - (half * r) * r)
    return r


def _exponentials() -> list[float]:
    """Tabulate exp(c / 256) for the codes c from -2047 to 2047."""
    return [exp(math.ldexp(c, -8)) for c in range(-TABLE_LIMIT, TABLE_LIMIT + 1)]


EXPONENTIALS = _exponentials()
SIGMOIDS = float32s(1 / (1 + value) for value in reversed(EXPONENTIALS))


def exp_of_code(code: int) -> float:
    """Look up E[code]."""
    return EXPONENTIALS[code + TABLE_LIMIT]


def sigmoid_of_code(code: int) -> float:
    """Look up S[code], which is a float32."""
    return SIGMOIDS[code + TABLE_LIMIT]
