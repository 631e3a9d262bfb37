"""The exact minimum of a small linear program: every vertex, in integers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from corgi_solvers import Problem
from solver_problems import INF

Vector = np.ndarray
OPEN = 2.0**1023
"""Stands in for a missing column bound in the enumeration: fewer points, so a minimum that is no lower."""


def exactly(values: object) -> list[Fraction]:
    return [Fraction(float(v)) for v in np.asarray(values)]


def dot(a: Sequence[Fraction], b: Sequence[Fraction]) -> Fraction:
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))


def is_feasible(p: Problem, point: list[Fraction]) -> bool:
    """Exactly."""
    sides = [
        *zip(p.row_lower, (dot(exactly(a), point) for a in p.A.toarray()), p.row_upper, strict=True),
        *zip(p.col_lower, point, p.col_upper, strict=True),
    ]
    return all(low <= v <= high for low, v, high in sides) and all(
        sum(
            (s * point[j] + t) ** 2
            for j, s, t in zip(ball.columns, exactly(ball.scale), exactly(ball.shift), strict=True)
        )
        <= Fraction(ball.radius) ** 2
        for ball in p.balls
    )


def determinant(rows: list[list[int]]) -> int:
    if len(rows) == 1:
        return rows[0][0]
    if len(rows) == 2:
        (a, b), (c, d) = rows
        return a * d - b * c
    (a, b, c), (d, e, f), (g, h, i) = rows
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def cramer(matrix: list[list[int]], right: list[int]) -> tuple[int, list[int]]:
    """(D, N) with D > 0 and matrix (N / D) = right; D = 0 if the matrix is singular."""
    D = determinant(matrix)
    if D == 0:
        return 0, []
    sign = 1 if D > 0 else -1
    places = range(len(right))
    replaced = ([[*row[:j], b, *row[j + 1 :]] for row, b in zip(matrix, right, strict=True)] for j in places)
    return sign * D, [sign * determinant(rows) for rows in replaced]


def half_spaces(p: Problem) -> list[tuple[list[int], int, int, int]]:
    """All that a point has to satisfy, as (a, b, row, factor): a'x >= b, ``factor`` times a row (-1: a column's)."""
    dense = [*p.A.toarray(), *np.eye(p.n)]
    lower = np.r_[p.row_lower, np.where(np.isfinite(p.col_lower), p.col_lower, -OPEN)]
    upper = np.r_[p.row_upper, np.where(np.isfinite(p.col_upper), p.col_upper, OPEN)]
    found = []
    for i, (a, low, high) in enumerate(zip(dense, lower, upper, strict=True)):
        for sign, side in ((1, low), (-1, high)):
            if math.isfinite(side):
                numbers = [sign * v for v in exactly([*a, side])]
                common = max(v.denominator for v in numbers)  # powers of two: the largest is a multiple of all
                whole = [v.numerator * (common // v.denominator) for v in numbers]
                found.append((whole[:-1], whole[-1], i if i < p.m else -1, sign * common))
    return found


def exact_minimum(p: Problem) -> tuple[Fraction, Vector] | None:
    """The minimum over the box (an open side ends at OPEN) and multipliers (m,) of its rows, rounded to floats.

    By enumeration of the vertices: the set is bounded, so if there is no vertex, there is no point: None.
    """
    sides = half_spaces(p)
    c = exactly(p.c)
    common = max(v.denominator for v in c)
    cost = [v.numerator * (common // v.denominator) for v in c]
    best: tuple[int, int] | None = None
    active: tuple[tuple[list[int], int, int, int], ...] = ()
    for chosen in itertools.combinations(sides, p.n):
        D, N = cramer([a for a, _, _, _ in chosen], [b for _, b, _, _ in chosen])
        if D == 0 or any(sum(map(int.__mul__, a, N)) < b * D for a, b, _, _ in sides):
            continue
        value = sum(map(int.__mul__, cost, N))
        if best is None or value * best[1] < best[0] * D:
            best, active = (value, D), chosen
    if best is None:
        return None
    D, N = cramer([list(column) for column in zip(*(a for a, _, _, _ in active), strict=True)], cost)
    y = np.zeros(p.m)
    for share, (_, _, row, factor) in zip(N, active, strict=True):
        if row >= 0:
            y[row] += nearest(Fraction(share * factor, D * common))
    return Fraction(*best) / common + Fraction(p.offset), y


def nearest(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return INF if value > 0 else -INF


def above(bound: float, exact: Fraction) -> bool:
    return bound != -INF and Fraction(bound) > exact
