"""Arithmetic of compiled loops: it is done in float64, whatever the dtype of the arrays.

Loops over contiguous arrays of plain arithmetic use the vector units of the processor. So
exponentials and logarithms are polynomials here, without a branch and without a call.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy
from numba.core import types
from numba.extending import intrinsic

LEAST, LARGEST = -708.0, 709.0
"""Between these an exponential is a normal number."""

ROUNDER = 1.5 * 2**52
"""A number so large has no digits behind the point: to add it and take it away rounds."""

LOG_2 = math.log(2)
LOG_2_HIGH = float.fromhex("0x1.62e42fee00000p-1")
LOG_2_LOW = 1.9082149292705877e-10
"""The logarithm of 2 in two parts, of which a multiple of the first is exact."""

SQRT_HALF_BITS = 0x3FE6A09E667F3BCD
"""Of the float64 number next to the square root of 1/2."""

LOG_2_PI = math.log(2 * math.pi)


def stamp(package: Path) -> str:
    """Of the sources of all loops in a package, and of the constants that they use."""
    sources = sorted([*package.rglob("*loops.py"), *package.rglob("displacement.py")])
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


STAMP = stamp(Path(__file__).parents[1])


def _compiled(function: Callable[..., Any], *flags: str) -> Any:
    # of the name that numba keeps it by: of changes it sees those of the function's own file alone
    function.__qualname__ += f"_{STAMP}"
    options: dict[str, Any] = {"fastmath": set(flags), "error_model": "numpy", "nogil": True}
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # no folder that could keep the result can be written
        return numba.njit(function, **options)


def exactly(function: Callable[..., Any]) -> Any:
    """Compile a function whose roundings count."""
    return _compiled(function, "contract")


def loop(function: Callable[..., Any]) -> Any:
    """Compile a function whose sums may go in any order; NaN and infinity are what they are."""
    return _compiled(function, "reassoc", "contract", "nsz", "arcp")


def inside(function: Callable[..., Any]) -> Any:
    """A function that becomes a part of each loop that calls it.

    Arrays cost something each time they are handed on: their references are counted.
    """
    return numba.njit(function, inline="always")


@intrinsic
def _pointer(_, address, unit):
    """An address as a pointer to numbers of the type of another."""

    def code(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(unit)(address, unit), code


@loop
def array(address, shape, unit):
    """The contiguous array at an address, of numbers of the type of ``unit``."""
    return numba.carray(_pointer(address, unit), shape)  # type: ignore


APART = 40
"""Numbers between work arrays."""


@loop
def rows(count, size):
    """Work arrays: ``count`` rows, of which the first ``size`` numbers are to be used.

    The compiler lets loops use the vector units if what they write is some distance away from
    what they read, even if both end before that. These rows are that far from each other and from
    all else, so that the same numbers are rounded in the same way wherever they lie.
    """
    return numpy.empty((count + 2, size + APART))[1 : count + 1]


@exactly
def exp(x):
    """Of a float64 number, to its last digit."""
    y = LEAST if x < LEAST else x
    y = LARGEST if y > LARGEST else y
    shifted = y / LOG_2 + ROUNDER
    n = shifted - ROUNDER
    r = (y - n * LOG_2_HIGH) - n * LOG_2_LOW
    p = 1 / 39916800 + r / 479001600
    p = 1 / 362880 + r * (1 / 3628800 + r * p)
    p = 1 / 5040 + r * (1 / 40320 + r * p)
    p = 1 / 120 + r * (1 / 720 + r * p)
    p = 1 / 6 + r * (1 / 24 + r * p)
    p = 1 + r * (1 + r * (1 / 2 + r * p))
    power = numpy.int64((numpy.float64(shifted).view(numpy.int64) + 1023) << 52)
    p = p * power.view(numpy.float64)
    p = 0.0 if x < LEAST else p
    return math.inf if x > LARGEST else p


@exactly
def log(x, excess):
    """Of a float64 number, to its last digit, if that is known of its ``excess`` over 1.

    NaN for what is not positive.
    """
    bits = numpy.float64(x).view(numpy.int64)
    power = (bits - numpy.int64(SQRT_HALF_BITS)) >> 52
    near = numpy.int64(bits - (power << 52)).view(numpy.float64)  # sqrt(1/2) <= near < sqrt(2)
    f = excess if power == 0 else near - 1.0
    s = f / (2.0 + f)
    w = s * s
    p = 1 / 15 + w * (1 / 17 + w / 19)
    p = 1 / 9 + w * (1 / 11 + w * (1 / 13 + w * p))
    p = 1 / 3 + w * (1 / 5 + w * (1 / 7 + w * p))
    y = 2 * s * (1 + w * p) + power * LOG_2
    y = y if x < math.inf else x
    return y if x > 0.0 else math.nan


@inside
def normal_tail(x):
    r"""The probability that a standard Normal number exceeds ``x >= 0``, to 13 digits.

    It is :math:`g(x / \sqrt 2)\, e^{-x^2/2} / 2 (1 + \sqrt 2 x)` with a g that varies by 20 % over
    all x, here its Chebyshev series in a variable between -1 and 1.

    Reference:
        Shepherd and Laframboise, *Chebyshev approximation of (1 + 2x) exp(x^2) erfc x in
        0 <= x < oo*, Mathematics of Computation 36, 1981.
    """
    y = x / math.sqrt(2)
    t = (y - 3.75) / (y + 3.75)
    p = -2.623107347133476e-09 + t * 3.1114333809799254e-10
    p = 3.197926671666804e-08 + t * (-3.744210080962018e-09 + t * p)
    p = -2.4857126248016745e-07 + t * (2.3263508708859124e-08 + t * p)
    p = 1.7419821586224816e-06 + t * (-5.7218230603224086e-08 + t * p)
    p = -1.1438048033346894e-05 + t * (-9.73559896736775e-07 + t * p)
    p = 5.164652974177416e-05 + t * (2.238423915508223e-05 + t * p)
    p = 0.000293714378044958 + t * (-0.0002901540805408417 + t * p)
    p = -0.009746579683265262 + t * (0.0017556258528952954 + t * p)
    p = -0.05869339857664934 + t * (0.028362277418956406 + t * p)
    p = -0.10880393014244462 + t * (0.09230432116037748 + t * p)
    p = 0.0035854154854790257 + t * (0.0822767384901452 + t * p)
    p = 1.2375126308378275 + t * (-0.14024059858554697 + t * p)
    return p * exp(-y * y) / (2 + 4 * y)


@loop
def log_softmax(logits, out):
    """Of K numbers, some of which may be ``-inf``."""
    most = -math.inf
    for k in range(logits.size):
        out[k] = logits[k]
        most = max(most, out[k])
    total = 0.0
    for k in range(logits.size):
        total += exp(out[k] - most)
    total = most + math.log(total)
    for k in range(logits.size):
        out[k] -= total
