"""Evaluate: the value of an expression to as many digits as one asks for.

Nothing here can run long: numbers that would grow beyond a limit raise, and every evaluation has a budget of steps.
Two numbers are told apart by what happens to their difference when the precision is doubled: that of equal ones
shrinks with it, that of different ones stays, however badly an expression is conditioned.
"""

from __future__ import annotations

import cmath
import functools
import hashlib
import math
import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from algorist.verify.exact import STEPS, TERMS, Point, Undefined, exact
from algorist.verify.nodes import Node

MAGNITUDE = 1 << 40  # largest exponent of two of an inexact one
DIGITS = (60, 30)

Value = Any  # float, complex, or a number of mpmath


class Huge(Exception):
    """There is a value, too large or too near zero to be written down."""


class Unknown(Exception):
    """We do not know how to compute this: an integral, a limit, too many steps."""


class Digits:
    """Arithmetic to a number of digits: 15 are the machine's own floats, more are mpmath's."""

    def __init__(self, digits: int = 15) -> None:
        self.digits = digits
        # What has happened since these were last set: a sum lost digits; a root or logarithm of reals was complex.
        self.cancelled = self.left_reals = False
        # Binary places by which a term was too small for the digits of its sum, the most extreme of all; 0 for none.
        self.absorbed = 0.0
        self._functions = _machine() if digits == 15 else _functions_of(_context(digits))
        self._context = None if digits == 15 else _context(digits)
        self._left = STEPS

    def value(self, node: Node, point: Point) -> Value:
        """The value with variables at `point`; complex where it must be.

        Raises:
            Undefined, Huge, Unknown.
        """
        self._left = STEPS
        try:
            found = self._value(node, point)
        except (ZeroDivisionError, ValueError, TypeError) as error:  # TypeError: the floor of a complex number
            raise Undefined from error
        except OverflowError as error:
            raise Huge from error
        if found != found or abs(found) == math.inf:
            raise Undefined
        return found

    def number(self, value: Fraction) -> Value:
        """An exact number in this arithmetic."""
        if self._context is None:
            return float(value)
        return self._context.mpf(value.numerator) / value.denominator

    def _value(self, node: Node, point: Point) -> Value:
        self._left -= 1
        if self._left < 0:
            raise Unknown
        kind = node.kind
        if kind in ("number", "decimal"):
            return self.number(node.value)
        if kind == "symbol":
            return self.number(point[node.value])
        if kind == "constant":
            if node.value == "infinity":
                raise Undefined
            return self._functions[node.value]()
        if kind == "series":
            return self._series(node, point)
        parts = [self._value(part, point) for part in node.parts]
        if kind == "sum":
            return self._sum(parts)
        if kind == "product":
            return functools.reduce(lambda left, right: left * right, parts)
        if kind == "quotient":
            return parts[0] / parts[1]
        if kind in ("power", "function"):
            found = self._power(*parts) if kind == "power" else self._apply(node.value, parts)
            if isinstance(found, complex) and not any(isinstance(part, complex) for part in parts):
                self.left_reals = True
            return found
        if kind == "negative":
            return -parts[0]
        if kind in ("applied", "indexed"):
            return self._any_function(f"{kind} {node.value}", parts)
        if kind == "degrees":
            return parts[0] * self._functions["pi"]() / 180
        if kind == "percent":
            return parts[0] / 100
        if kind == "unit":
            return parts[0]
        raise Unknown

    def _sum(self, parts: list[Value]) -> Value:
        found = sum(parts)
        sizes = [abs(part) for part in parts if part]
        if sizes and abs(found) < 1e-6 * max(sizes):
            self.cancelled = True
        if self._context is not None and sizes:
            places = float(self._context.mag(min(sizes)) - self._context.mag(max(sizes)))
            if places < -3.32 * (self.digits - 8):
                self.absorbed = min(self.absorbed, places)
        return found

    def _power(self, base: Value, exponent: Value) -> Value:
        if base == 0:
            if exponent.real > 0:
                return base
            raise Undefined
        if abs(exponent) * (abs(self._exponent_of(base)) + 1) > (MAGNITUDE if self._context else 1_000):
            raise Huge
        if self._context is not None and exponent == int(exponent.real):
            return base ** int(exponent.real)
        return base**exponent

    def _exponent_of(self, value: Value) -> float:
        return math.log2(abs(value)) if self._context is None else float(self._context.mag(value))

    def _apply(self, name: str, parts: list[Value]) -> Value:
        if name not in self._functions:
            raise Unknown
        if name in ("exp", "sinh", "cosh", "tanh") and abs(parts[0]) > (MAGNITUDE if self._context else 700):
            raise Huge
        if name in ("factorial", "binom") and abs(parts[0]) > (10**8 if self._context else 160):
            raise Huge
        if any(self._context and abs(self._exponent_of(part)) > 2_000 for part in parts if part):
            raise Huge
        return self._functions[name](*parts)

    def _any_function(self, name: str, parts: list[Value]) -> Value:
        """A function of which nothing is known: the same value for the same arguments, and no law."""
        digest = hashlib.sha256(name.encode()).digest()
        found = self.number(Fraction(digest[0] + 7, 97))
        for place, part in enumerate(parts, 1):
            scale = self.number(Fraction(digest[place] + 11, 131))
            found = found + self._functions["sin"](part * scale + found) + part * scale / 3
        return found

    def _series(self, node: Node, point: Point) -> Value:
        body, *bounds = node.parts
        start, stop = (exact(bound, point) for bound in bounds)
        if start is None or stop is None or start.denominator != 1 or stop.denominator != 1 or stop - start > TERMS:
            raise Unknown
        terms = (
            self._value(body, {**point, node.value[1]: Fraction(index)})
            for index in range(start.numerator, stop.numerator + 1)
        )
        if node.value[0] == "sum":
            return sum(terms, self.number(Fraction(0)))
        return functools.reduce(lambda left, right: left * right, terms, self.number(Fraction(1)))


def _either(real: Callable[..., float], complex_: Callable[..., complex]) -> Callable[..., Value]:
    """A function of the reals that goes on into the complex numbers where the reals end."""

    def function(*arguments: Value) -> Value:
        if not any(isinstance(argument, complex) for argument in arguments):
            try:
                return real(*arguments)
            except ValueError:
                pass
        return complex_(*arguments)

    return function


# What math, cmath and mpmath call by the same names.
_BOTH = [
    "sin",
    "cos",
    "tan",
    "sinh",
    "cosh",
    "tanh",
    "exp",
    "sqrt",
    "log",
    "asin",
    "acos",
    "atan",
    "asinh",
    "acosh",
    "atanh",
]


@functools.cache
def _machine() -> dict[str, Callable[..., Value]]:
    found = {name: _either(getattr(math, name), getattr(cmath, name)) for name in _BOTH}
    found |= {"pi": lambda: math.pi, "e": lambda: math.e, "i": lambda: 1j, "floor": math.floor, "ceil": math.ceil}
    found["gamma"] = math.gamma
    found["arg"] = cmath.phase
    return _derived(found)


def _functions_of(context: Any) -> dict[str, Callable[..., Value]]:
    found = {name: getattr(context, name) for name in (*_BOTH, "floor", "ceil", "gamma", "arg")}
    found |= {"pi": lambda: +context.pi, "e": lambda: +context.e, "i": lambda: context.mpc(0, 1)}
    return _derived(found)


def _derived(found: dict[str, Callable[..., Value]]) -> dict[str, Callable[..., Value]]:
    """The other functions, from those that every arithmetic has."""
    own = dict(found)
    for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh"):
        found[f"arc{name}"] = own[f"a{name}"]
    for name, of in (
        ("sec", "cos"),
        ("csc", "sin"),
        ("cot", "tan"),
        ("sech", "cosh"),
        ("csch", "sinh"),
        ("coth", "tanh"),
    ):
        found[name] = functools.partial(lambda function, x: 1 / function(x), own[of])
    for name, of in (("arcsec", "acos"), ("arccsc", "asin")):
        found[name] = functools.partial(lambda function, x: function(1 / x), own[of])
    found["arccot"] = lambda x: own["pi"]() / 2 - own["atan"](x)
    found["ln"] = own["log"]
    found["log"] = lambda x, base=None: own["log"](x) if base is None else own["log"](x) / own["log"](base)
    found["root"] = functools.partial(_root, own["sqrt"])
    found["abs"] = abs
    found["cis"] = lambda x: own["cos"](x) + own["i"]() * own["sin"](x)
    found["re"] = lambda x: x.real
    found["im"] = lambda x: x.imag
    found["sgn"] = lambda x: (x > 0) - (x < 0)
    found["max"], found["min"] = max, min
    found["factorial"] = lambda x: own["gamma"](x + 1)
    found["binom"] = functools.partial(_binomial, own["gamma"])
    found["mod"] = lambda x, y: x - y * own["floor"](x / y)
    return found


def _binomial(gamma: Callable[[Value], Value], n: Value, k: Value) -> Value:
    """Zero where more are chosen than there are."""
    if n == int(n.real) and k == int(k.real) and 0 <= n.real < k.real:
        return 0 * n
    return gamma(n + 1) / gamma(k + 1) / gamma(n - k + 1)


def _root(square_root: Callable[[Value], Value], value: Value, degree: Value) -> Value:
    """The real root where there is one: the cube root of -8 is -2."""
    if degree == 2:
        return square_root(value)
    if not value.imag and value.real < 0 and degree == int(degree.real) and int(degree.real) % 2:
        return -((-value.real) ** (1 / degree))
    return value ** (1 / degree)


_local = threading.local()


def _context(digits: int) -> Any:
    """This thread's own arithmetic of mpmath: its precision is state that threads must not share."""
    import mpmath  # type: ignore[import-untyped,unused-ignore]

    known = _local.__dict__.setdefault("contexts", {})
    if digits not in known:
        known[digits] = mpmath.mp.clone()
        known[digits].dps = digits
    return known[digits]
