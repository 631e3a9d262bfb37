"""A reader of VNN-LIB text, versions 1.0 and 2.0, that shares no code with the package: s-expressions, and no more."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

_TOKEN = re.compile(r"[()]|[^\s()]+")
_NAME = re.compile(r"([XY])(?:_(\d+)|\[([\d,]+)\])")


@dataclass(frozen=True)
class Query:
    """``low`` and ``high``: the bounds of every input in order, as exact fractions. ``ways``: conjunctions of which one
    must hold, each of comparisons (output, "<=" or ">=", number). ``shapes``: of X and Y, as version 2.0 says them."""

    low: list[Fraction]
    high: list[Fraction]
    outputs: int
    ways: list[list[tuple[int, str, Fraction]]]
    shapes: dict[str, tuple[int, ...]]

    def holds(self, y: np.ndarray) -> bool:
        """Whether outputs y fulfil the condition, as floats compare."""
        met = {"<=": lambda a, b: a <= b, ">=": lambda a, b: a >= b}
        return any(all(met[op](y[n], float(b)) for n, op, b in way) for way in self.ways)


def read(text: str) -> Query:
    """Raises ValueError, KeyError or AssertionError for what is no such text."""
    statements = parse(re.sub(r";[^\n]*", "", text))
    bounds: dict[str, dict[int, Fraction]] = {">=": {}, "<=": {}}
    declared: dict[str, list[int]] = {"X": [], "Y": []}
    shapes: dict[str, tuple[int, ...]] = {}
    single: list[tuple[int, str, Fraction]] = []
    ways: list[list[tuple[int, str, Fraction]]] = []
    for statement in statements:
        match statement:
            case ["declare-const", name, "Real"]:
                kind, at = number_of(name, shapes)
                assert at == len(declared[kind]), "declared in order"
                declared[kind].append(at)
            case ["vnnlib-version", "<2.0>"]:
                assert statement is statements[0]
            case ["declare-network", _, *ends]:
                for what, name, kind, shape in ends:
                    assert (what, name, kind in ("float32", "float64")) in (
                        ("declare-input", "X", True),
                        ("declare-output", "Y", True),
                    )
                    shapes[name] = tuple(map(int, shape.strip("[]").split(",")))
                    declared[name] = list(range(int(np.prod(shapes[name]))))
            case ["assert", ["or", *cases]]:
                assert not ways and all(case[0] == "and" for case in cases)
                ways = [[_comparison(part, shapes)[1:] for part in case[1:]] for case in cases]
            case ["assert", part]:
                kind, at, op, number = _comparison(part, shapes)
                if kind == "X":
                    assert at not in bounds[op], "bounded once"
                    bounds[op][at] = number
                else:
                    single.append((at, op, number))
            case _:
                raise ValueError(f"not a statement: {statement}")
    assert not (single and ways)
    low, high = ([bounds[op][at] for at in declared["X"]] for op in (">=", "<="))
    assert len(bounds[">="]) == len(bounds["<="]) == len(low)
    return Query(low, high, len(declared["Y"]), ways or [single], shapes)


def _comparison(part: Any, shapes: dict[str, tuple[int, ...]]) -> tuple[str, int, str, Fraction]:
    op, name, number = part
    assert op in ("<=", ">=") and re.fullmatch(r"-?\d+\.\d+", number), part
    return (*number_of(name, shapes), op, Fraction(number))


def number_of(name: str, shapes: dict[str, tuple[int, ...]]) -> tuple[str, int]:
    """ "X_7" or "X[0,0,1,2]" as its letter and its number in order."""
    found = _NAME.fullmatch(name)
    assert found, name
    if found[2] is not None:
        return found[1], int(found[2])
    place = tuple(map(int, found[3].split(",")))
    return found[1], int(np.ravel_multi_index(place, shapes[found[1]]))


def parse(text: str) -> list[Any]:
    """Nested lists of words."""
    stack: list[list[Any]] = [[]]
    for token in _TOKEN.findall(text):
        if token == "(":
            stack.append([])
        elif token == ")":
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(token)
    assert len(stack) == 1, "parentheses match"
    return stack[0]
