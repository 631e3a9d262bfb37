"""safe_bound and proves_infeasible against exact rational optima: never above, close with good multipliers."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from corgi_solvers import Highs, NormBall, Problem, ProblemError, Status, dual_objective, proves_infeasible, safe_bound
from exact_programs import above, dot, exact_minimum, exactly, is_feasible, nearest
from patience import mostly_slow
from solver_problems import INF, ball_of, problem_of, scipy_minimum

Vector = np.ndarray
NO_ROWS: tuple[list[float], list[float]] = ([], [])
OPEN_BOX = [-INF, -INF], [INF, INF]
PAIR = np.array([0, 1])
w = 2.0**-1074


def problem(c: Any, A: Any, rows: Any, box: Any, offset: float = 0.0, balls: Sequence[NormBall] = ()) -> Problem:
    """``rows`` and ``box``: (lower, upper)."""
    n = np.size(c)
    A = np.asarray(A, dtype=float).reshape(-1, n)
    return problem_of(c, offset, A, *rows, *box, np.zeros(n, dtype=bool), tuple(balls))


# --- feasible problems of every scale ---------------------------------------------------------------------------------


def exponents(rng: np.random.Generator, kind: str, m: int, n: int) -> tuple[Vector, Vector, Vector, float]:
    """Powers of two (m, n), (n,), (n,) and one for the sizes of A, x, c and the offset."""
    rows, columns, value = rng.integers(-500, 501, m), rng.integers(-500, 501, n), int(rng.integers(-40, 41))
    if kind == "even":  # all products of a row are of one size, and so are all terms of the objective
        return rows[:, None] - columns, columns, value - columns, value
    if kind == "wild":  # nothing fits anything
        return rng.integers(-500, 501, (m, n)), columns, rng.integers(-500, 501, n), int(rng.integers(-500, 501))
    if kind == "denormal":  # coefficients at the bottom, columns at the top of the range
        up = rng.integers(900, 1000, n)
        return rng.integers(-1074, -960, (m, n)), up, rng.integers(-1074, -960, n), -60
    if kind == "underflow":  # products below the smallest denormal number
        low = rng.integers(-560, -520, n)
        return rng.integers(-560, -520, (m, n)), low, low, -1070
    return np.zeros((m, n), int), np.zeros(n, int), np.zeros(n, int), int(rng.choice([0, 0, 53]))


KINDS = ["plain", "even", "wild", "denormal", "underflow"]


def down(value: Fraction) -> float:
    near = nearest(value)
    return near if math.isfinite(near) and Fraction(near) <= value else math.nextafter(near, -INF)


def feasible_problem(rng: np.random.Generator, kind: str, *, tight: bool = False) -> Problem | None:
    """At most three rows and columns around a point x0 that is feasible exactly; None if a number overflows.

    Any column may be fixed at x0 or open; a row's side is x0's activity, rounded outwards, or further out. Often the
    activities cancel to next to nothing, or the costs are a combination of the rows, so that reduced costs do.
    ``tight``: x0 is all that the columns' bounds leave, and no row side is further out.
    """
    m, n = int(rng.integers(0, 4)), int(rng.integers(1, 4))
    short = rng.random() < 0.4  # few digits: exact products, ties, degenerate vertices

    def numbers(exponent: Any) -> Any:
        size = np.shape(exponent)
        raw = rng.integers(-3, 4, size).astype(float) if short else rng.normal(size=size)
        return np.ldexp(raw, exponent)

    of_A, of_x, of_c, of_offset = exponents(rng, kind, m, n)
    A, x0, c, offset = numbers(of_A) * (rng.random((m, n)) < 0.8), numbers(of_x), numbers(of_c), numbers(of_offset)
    if n > 1 and rng.random() < 0.3:
        A[:, -1] = -(A[:, :-1] @ x0[:-1]) / x0[-1]
    if m and rng.random() < 0.5:
        c = A.T @ (numbers(np.zeros(m, int)) * np.ldexp(1.0, of_c.max() - of_A.max(axis=1)))
    room = np.where(rng.random((2, n)) < rng.choice([0.0, 0.3, 1.0]), 0.0, np.abs(numbers(np.stack([of_x, of_x]))))
    room *= 2.0 ** int(rng.choice([0, 0, 20]))
    room[rng.random((2, n)) < rng.choice([0.0, 0.1])] = INF
    if tight:
        room[:] = 0
    if not all(np.isfinite(v).all() for v in (c, A, x0, offset)):
        return None
    activity = [dot(exactly(row), exactly(x0)) for row in A]
    low, high = np.array([down(v) for v in activity]), np.array([-down(-v) for v in activity])
    slack = np.abs(np.stack([low, high])) * rng.choice([0.0, 0.0] if tight else [0.0, 0.0, 1e-3, 1.0, INF], (2, m))
    slack[np.isnan(slack)] = INF
    if not np.isfinite(np.r_[low, high]).all():
        return None
    sides = np.nextafter(low, -INF) - slack[0], np.nextafter(high, INF) + slack[1]
    none = slack == 0
    row_lower, row_upper = np.where(none[0], low, sides[0]), np.where(none[1], high, sides[1])
    return Problem(c, float(offset), A, row_lower, row_upper, x0 - room[0], x0 + room[1], np.zeros(n, dtype=bool))


def multipliers(rng: np.random.Generator, y: Vector) -> Iterator[Vector]:
    """The best ones ``y`` (m,), some close to them and some that are not."""
    yield y
    yield np.nextafter(y, rng.choice([-INF, INF], y.size))
    yield y * (1 + rng.choice([1e-12, 1e-6, 1e-2]) * rng.normal(size=y.size))
    garbage = rng.choice(
        [np.zeros_like(y), -y, rng.normal(size=y.size), np.ldexp(1.0, rng.integers(-1074, 1024, y.size))]
    )
    special = rng.choice([math.nan, INF, -INF, 1e308, -1e308, 5e-324, 1e-200, 0.0], y.size)
    yield np.where(rng.random(y.size) < 0.2, special, garbage)


def compare(seed: int, count: int) -> dict[str, tuple[int, int, int]]:
    """Per kind: (bounds claimed, safe bounds above the exact minimum, plain ones above it) over ``count`` problems."""
    rng = np.random.default_rng(seed)
    seen = {kind: [0, 0, 0] for kind in KINDS}
    done = 0
    while done < count:
        kind = KINDS[done % len(KINDS)]
        with np.errstate(all="ignore"):
            p = feasible_problem(rng, kind)
        if p is None:
            continue
        found = exact_minimum(p)
        assert found is not None  # x0 is feasible
        exact, best = found
        with np.errstate(over="ignore", invalid="ignore"):
            for y in multipliers(rng, best):
                bound = safe_bound(p, y)
                seen[kind][0] += bound > -INF
                seen[kind][1] += above(bound, exact)
                seen[kind][2] += above(dual_objective(p, y), exact)
        done += 1
    return {kind: (a, b, c) for kind, (a, b, c) in seen.items()}


def check_never_above(seed: int, count: int) -> None:
    for kind, (claimed, wrong, plainly_wrong) in compare(seed, count).items():
        per_kind = count / len(KINDS)
        assert wrong == 0, kind
        assert claimed > 3 * per_kind, kind  # four multipliers a problem: few come to nothing
        assert plainly_wrong > per_kind / 2, kind  # the problems have teeth: without the margin many bounds are above


@pytest.mark.parametrize("count", mostly_slow([500, 2000], [500]))
def test_never_above_the_exact_minimum(count: int) -> None:
    check_never_above(seed=0, count=count)


@pytest.mark.slow
def test_never_above_the_exact_minimum_of_a_hundred_thousand() -> None:
    check_never_above(seed=1, count=100_000)


def test_the_enumeration_finds_the_known_minimum_and_its_multipliers() -> None:
    # min -3 x - 2 y + 1 with x + y <= 4, x + 3 y <= 9, x <= 3: at (3, 1) with multipliers -2 and 0
    p = problem([-3, -2], [[1, 1], [1, 3]], ([-INF, -INF], [4, 9]), ([0, 0], [3, INF]), offset=1)
    found = exact_minimum(p)
    assert found is not None
    assert found[0] == -10
    np.testing.assert_array_equal(found[1], [-2.0, 0.0])
    assert exact_minimum(problem([1], [[1]], ([3], [INF]), ([0], [1]))) is None


# --- single errors, one by one ----------------------------------------------------------------------------------------


def lost_ones(sign: int) -> tuple[Problem, Vector, list[Fraction]]:
    """A column that meets a hundred rows: 2^53 - (2^53 + 1 + 1 + ...) is zero as calculated, -100 in truth.

    Each row, a (x_0 sign - x_i) = 0 with x_i = 1, has another column of its own, so that nothing else is large.
    """
    a = np.r_[2.0**53, np.ones(100)]
    A, ones = np.column_stack([sign * a, -np.diag(a)]), np.ones(a.size)
    box = np.r_[min(sign, 0), ones], np.r_[max(sign, 0), ones]
    return problem(np.r_[sign * a[0], -a], A, (0 * a, 0 * a), box), ones, exactly(np.r_[sign, ones])


B = 2.0**53
CASES: dict[str, tuple[Problem, Sequence[float] | Vector, list[Fraction]]] = {
    "0.1 + 0.2": (problem([0.1, 0.2], [], NO_ROWS, ([1, 1], [1, 1])), [], exactly([1, 1])),
    "a reduced cost that is not quite zero": (
        problem([1], [[0.1]], ([1e8], [INF]), ([0], [1e9])),
        [10.0],
        [Fraction(10**8) / Fraction(0.1)],
    ),
    "a reduced cost that is made of rows only": (
        problem([0, 0, 0], [[B, -B, 0], [1, 0, -1], [-B, B, 0]], ([0] * 3, [0] * 3), ([0, 1, 1], [1, 1, 1])),
        [1.0, 1.0, 1.0],
        exactly([1, 1, 1]),
    ),
    "a reduced cost of a hundred roundings": lost_ones(1),
    "a reduced cost of a hundred roundings, below zero": lost_ones(-1),
    "a hundred products that underflow": (  # 0.49 w each, while c is 49 w
        problem([49 * w], [[2.0**-600]] * 100, ([2.0**390] * 100, [INF] * 100), ([2.0**990], [2.0**991])),
        [0.49 * 2.0**-474] * 100,
        exactly([2.0**990]),
    ),
    "small terms beside a large offset": (
        problem([1.01] * 100, [], NO_ROWS, ([1] * 100, [1] * 100), B),
        [],
        exactly([1] * 100),
    ),
    "terms that underflow": (
        problem([-0.49 * 2.0**-537] * 9, [], NO_ROWS, ([0] * 9, [2.0**-537] * 9)),
        [],
        exactly([2.0**-537] * 9),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_where_the_plain_bound_is_above_the_truth_this_one_is_not(name: str) -> None:
    p, y, point = CASES[name]
    assert is_feasible(p, point)
    value = dot(exactly(p.c), point) + Fraction(p.offset)
    assert above(dual_objective(p, y), value)
    assert not above(safe_bound(p, y), value)
    assert safe_bound(p, y) > -INF


def test_what_is_not_finite_claims_nothing() -> None:
    one = problem([1], [[1]], ([0.5], [INF]), ([0], [1]))
    assert safe_bound(one, [1]) == pytest.approx(0.5)
    for bad in (math.nan, INF, -INF):
        assert safe_bound(one, [bad]) == -INF
        assert not proves_infeasible(one, [bad])
    big = problem([1], [[1e300]], ([1], [2]), ([-1], [1]))
    assert safe_bound(big, [1e300]) == -INF  # the product
    assert safe_bound(big, [1e5]) > -INF
    assert safe_bound(problem([1e300], [], NO_ROWS, ([0], [1e300])), []) < 0
    assert safe_bound(problem([1e300], [], NO_ROWS, ([1e300], [1e300])), []) == -INF  # a term
    assert safe_bound(problem([1e308] * 2, [], NO_ROWS, ([1, 1], [1, 1])), []) == -INF  # their sum
    # |c| + |A|'|y| overflows, and no reach of 0 makes up for it
    assert safe_bound(problem([1.7e308], [[1e308]], ([0], [0]), ([0], [0])), [1]) == -INF


def test_multipliers_of_a_wrong_shape_are_refused() -> None:
    p = problem([1], [[1], [1]], ([0, 0], [1, 1]), ([0], [1]))
    for y in ([1.0], [1.0, 2.0, 3.0], [[1.0, 2.0]], 1.0):
        for function in (safe_bound, proves_infeasible):
            with pytest.raises(ProblemError, match=r"y has shape .*; the problem has 2 rows"):
                function(p, y)


def test_a_multiplier_that_presses_against_a_missing_side_is_dropped() -> None:
    p = problem([1], [[1], [1]], ([0.5, -INF], [INF, 0.75]), ([0], [1]))
    assert safe_bound(p, [1, 0]) == pytest.approx(0.5)
    assert safe_bound(p, [1, 7]) == safe_bound(p, [1, 0])
    assert safe_bound(p, [-7, 0]) == safe_bound(p, [0, 0]) == pytest.approx(0, abs=1e-14)
    assert safe_bound(p, [0, -1]) == pytest.approx(-0.75 + 0)


def test_open_columns_count_where_their_reduced_cost_is_certain() -> None:
    def bound(c: float, a: float, y: float, lower: float, upper: float) -> float:
        return safe_bound(problem([c], [[a]], ([1], [1]), ([lower], [upper])), [y])

    assert bound(0, 1, 0, -INF, INF) == pytest.approx(0, abs=1e-300)  # nothing touches it
    assert bound(1, 1, 1, -INF, INF) == -INF  # zero as calculated
    assert bound(0, 1e-200, 1e-200, -INF, INF) == -INF  # a product that is not zero, though calculated so
    assert bound(2, 1, 1, 3, INF) == pytest.approx(4)  # of a certain sign, and that side is closed
    assert bound(0, 1, 1, -INF, 3) == pytest.approx(-2)
    assert bound(2, 1, 1, -INF, 3) == -INF
    assert bound(0, 1, 1, 3, INF) == -INF
    assert bound(1, 1, 1, 3, INF) == bound(1, 1, 1, -INF, 3) == -INF  # not certain
    assert bound(0.3, 0.1, 3, 3, INF) == bound(0.3, 0.1, 3, -INF, 3) == -INF  # -6e-17 as calculated


def test_integrality_is_left_out() -> None:
    p = Problem([1], 0.0, [[2]], [1], [INF], [0], [1], [True])  # type: ignore[arg-type]
    assert safe_bound(p, [0.5]) == pytest.approx(0.5)


def test_problems_without_rows_or_columns() -> None:
    assert safe_bound(problem([1], [], NO_ROWS, ([3], [4]), 2.0), []) == pytest.approx(5)
    none = np.zeros(0)
    p = Problem(none, 2.0, np.zeros((1, 0)), [1.0], [2.0], none, none, none.astype(bool))  # type: ignore[arg-type]
    assert safe_bound(p, [0]) == pytest.approx(2)
    assert proves_infeasible(p, [1])  # 1 <= 0


def test_nothing_is_claimed_where_denormal_numbers_are_flushed_to_zero() -> None:
    p = problem([2.0**-1040], [], NO_ROWS, ([-(2.0**1000)], [2.0**1000]))
    assert safe_bound(p, []) == pytest.approx(-(2.0**-40))
    torch = pytest.importorskip("torch")
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor keeps denormal numbers")
    try:
        bound = safe_bound(p, [])
    finally:
        torch.set_flush_denormal(False)
    assert bound == -INF


# --- with a solver's multipliers --------------------------------------------------------------------------------------


def ordinary(rng: np.random.Generator, m: int, n: int) -> Problem:
    """Numbers of order one, rows of all kinds, columns with both bounds; feasible."""
    A, x0 = rng.normal(size=(m, n)) * (rng.random((m, n)) < 0.7), rng.uniform(-1, 1, n)
    activity = A @ x0
    lower = np.where(rng.random(m) < 0.6, activity - rng.random(m), -INF)
    upper = np.where(rng.random(m) < 0.6, activity + rng.random(m), INF)
    if rng.random() < 0.5:  # one equation: more of them would meet in no float
        lower[0] = upper[0] = activity[0]
    return problem(rng.normal(size=n), A, (lower, upper), (x0 - rng.random(n), x0 + rng.random(n)), float(rng.normal()))


def test_optimal_multipliers_of_small_lps_give_their_exact_minimum_to_1e_9() -> None:
    rng = np.random.default_rng(2)
    for _ in range(150):
        p = ordinary(rng, int(rng.integers(1, 4)), int(rng.integers(1, 4)))
        solved, found = Highs().solve(p).row_dual, exact_minimum(p)
        assert solved is not None
        assert found is not None
        for y in (solved, found[1]):
            bound = safe_bound(p, y)
            assert found[0] - Fraction(1, 10**9) <= Fraction(bound) <= found[0]


def test_optimal_multipliers_of_larger_lps_give_their_minimum_to_1e_9() -> None:
    rng = np.random.default_rng(3)
    for _ in range(60):
        p = ordinary(rng, int(rng.integers(1, 40)), int(rng.integers(1, 60)))
        status, minimum = scipy_minimum(p)
        solution = Highs().solve(p)
        assert status == 0
        assert solution.row_dual is not None
        assert safe_bound(p, solution.row_dual) == pytest.approx(minimum, abs=1e-9)


def violation_lp(p: Problem) -> Problem:
    """min of the sum of s >= 0 such that L - s <= A x <= U + s: its multipliers are a Farkas ray if it is positive."""
    one, wide = np.eye(p.m), np.full(p.m, INF)
    A = np.block([[p.A.toarray(), one], [p.A.toarray(), -one]])
    rows = np.r_[p.row_lower, -wide], np.r_[wide, p.row_upper]
    box = np.r_[p.col_lower, np.zeros(p.m)], np.r_[p.col_upper, np.full(p.m, 1e6)]
    return problem(np.r_[np.zeros(p.n), np.ones(p.m)], A, rows, box)


def test_farkas_rays_prove_infeasibility() -> None:
    rng = np.random.default_rng(4)
    proved = 0
    for _ in range(80):
        m, n = int(rng.integers(2, 8)), int(rng.integers(1, 8))
        lower = rng.normal(size=m) * n
        p = problem(rng.normal(size=n), rng.normal(size=(m, n)), (lower, lower + 4), (-np.ones(n), np.ones(n)), 1e6)
        solution = Highs().solve(violation_lp(p))
        assert solution.status is Status.OPTIMAL
        assert solution.row_dual is not None
        ray = solution.row_dual[:m] + solution.row_dual[m:]
        infeasible = solution.objective > 1e-6
        for scale in (1.0, 2.0**-900, 2.0**900):
            assert proves_infeasible(p, scale * ray) == infeasible
        assert not proves_infeasible(p, -ray)
        assert not proves_infeasible(p, np.zeros(m))
        proved += infeasible
    assert 20 <= proved <= 70


@pytest.mark.parametrize("each", mostly_slow([100, 400], [100]))
def test_a_feasible_problem_is_never_proved_infeasible(each: int) -> None:
    rng = np.random.default_rng(5)
    plainly_wrong = 0
    for kind in KINDS * each:
        with np.errstate(all="ignore"):
            p = feasible_problem(rng, kind, tight=bool(rng.random() < 0.5))
            if p is None or p.m == 0:
                continue
            sizes = np.abs(p.A.toarray()).max(axis=1)
            for y in multipliers(rng, rng.normal(size=p.m) / np.where(sizes > 0, sizes, 1)):
                assert not proves_infeasible(p, y)
                plainly_wrong += dual_objective(p.with_objective(np.zeros(p.n), 0.0), y) > 0
    assert plainly_wrong > each / 4


# --- balls ------------------------------------------------------------------------------------------------------------


def root_below(value: Fraction) -> Fraction:
    """No more than the square root, and that to 2^-200 of its size."""
    shift = 2 * max(0, 200 - (value.numerator.bit_length() - value.denominator.bit_length()) // 2)
    return Fraction(math.isqrt((value.numerator << shift) // value.denominator), 1 << (shift // 2))


def closed_form(p: Problem) -> Fraction | None:
    """No less than the minimum over disjoint balls whose columns are fixed or open; None if there is no point.

    The open ones share what the fixed ones leave of the radius: with u = S x + s it is R'^2 = R^2 - sum of their u^2,
    and with q = c / S the least q'u is -R' ||q||. All other columns are fixed.
    """
    fixed = p.col_lower == p.col_upper
    c, x = exactly(p.c), exactly(np.where(fixed, p.col_lower, 0))
    total = Fraction(p.offset) + sum(c[j] * x[j] for j in np.flatnonzero(fixed))
    for ball in p.balls:
        left, norm = Fraction(ball.radius) ** 2, Fraction(0)
        for j, scale, shift in zip(ball.columns, exactly(ball.scale), exactly(ball.shift), strict=True):
            if fixed[j]:
                left -= (scale * x[j] + shift) ** 2
            else:
                norm += (c[j] / scale) ** 2
                total -= c[j] / scale * shift
        if left < 0:
            return None
        total -= root_below(left * norm)
    return total


def fixed_or_open(rng: np.random.Generator, wild: bool) -> Problem:
    """One or two disjoint balls over up to five columns, some fixed inside, the others open; ``wild``: at any scale."""
    n = int(rng.integers(1, 6))
    of_u, of_scale, of_value = rng.integers(-400, 401, (3, n)) if wild else np.zeros((3, n), int)
    of_u, of_value = np.minimum(of_u[0] + rng.integers(-3, 4, n), 400), of_value[0]
    scale = np.ldexp(rng.uniform(0.5, 2, n) * rng.choice([-1, 1], n), of_scale)
    shift, radius = np.ldexp(rng.normal(size=n), of_u), np.ldexp(rng.uniform(0.1, 3), of_u[0])
    c = np.ldexp(rng.normal(size=n), np.clip(of_value + of_scale, -1000, 1000))
    fixed = rng.random(n) < rng.choice([0.0, 0.4])
    if not fixed.any() and rng.random() < 0.3:
        radius = 0.0
    x = (0.4 * radius * rng.uniform(-1, 1, n) - shift) / scale
    columns = rng.permutation(n)
    parts = np.split(columns, [int(rng.integers(0, n + 1))])
    balls = [NormBall(part, scale[part], shift[part], radius) for part in parts if part.size]
    lower, upper = np.where(fixed, x, -INF), np.where(fixed, x, INF)
    return problem(c, [], NO_ROWS, (lower, upper), float(rng.normal()) * 2.0 ** float(of_u[0] + of_value), balls)


BALLS = {
    "the norm of a ball's denormal multipliers": problem(
        [2.0**-574] * 2, [], NO_ROWS, OPEN_BOX, 0.0, [ball_of(PAIR, [2.0**500] * 2, [0, 0], 2.0**1000)]
    ),
    "a ball that is narrower than any float": problem(
        [2.0**1000, 0], [], NO_ROWS, OPEN_BOX, 0.0, [ball_of(PAIR, [4, 4], [0, 0], w)]
    ),
    "the other side of such a ball": problem(
        [-(2.0**1000), 0], [], NO_ROWS, OPEN_BOX, 0.0, [ball_of(PAIR, [-4, 4], [0, 0], w)]
    ),
}


@pytest.mark.parametrize("name", BALLS)
def test_not_above_the_closed_form_at_the_ends_of_the_range(name: str) -> None:
    exact, bound = closed_form(BALLS[name]), safe_bound(BALLS[name], [])
    assert exact is not None
    assert not above(bound, exact)
    assert bound > -INF


def test_a_ball_whose_multipliers_overflow_is_left_to_its_box() -> None:
    ball = ball_of(PAIR, [1e-300, 1e-300], [0, 0], 4e-300)
    p = problem([1e300, 1.0], [], NO_ROWS, ([-1, -INF], [INF, 1]), 0.0, [ball])
    assert safe_bound(p, []) == pytest.approx(-1e300)


@pytest.mark.parametrize("wild", [False, True])
def test_never_above_the_closed_form_of_balls(wild: bool) -> None:
    rng = np.random.default_rng(6)
    plainly_wrong = done = 0
    while done < 400:
        p = fixed_or_open(rng, wild)
        exact = closed_form(p)
        if exact is None:
            continue
        bound = safe_bound(p, [])
        assert not above(bound, exact)
        size = sum(abs(v) for v in exactly(p.c)) * (1 + sum(abs(v) for ball in p.balls for v in exactly(ball.shift)))
        assert wild or Fraction(bound) >= exact - size / 10**12
        assert bound > -INF
        plainly_wrong += above(dual_objective(p, []), exact)
        done += 1
    assert plainly_wrong > 40


def with_known_optimum(rng: np.random.Generator, overlap: bool) -> tuple[Problem, Vector, Vector, Vector]:
    """(problem, optimal x, a point well inside, optimal y): rows, a box and balls of order one, made from their KKT.

    x is on every ball, and at the box and row sides that are drawn as active; c is whatever combination of their
    normals the multipliers draw. ``overlap``: the two balls share columns.
    """
    m, n = int(rng.integers(1, 5)), int(rng.integers(3, 9))
    inside, A = rng.normal(size=n), rng.normal(size=(m, n))
    cut = int(rng.integers(1, n - 1))
    groups = [np.arange(n - 1), np.arange(1, n)] if overlap else [np.arange(cut), np.arange(cut, n - 1)]
    c, balls = np.zeros(n), []
    x = inside + rng.uniform(-1, 1, n)
    for columns in groups:
        scale = rng.uniform(0.2, 4, columns.size) * rng.choice([-1, 1], columns.size)
        z = scale * (x - inside)[columns]
        balls.append(NormBall(columns, scale, -scale * inside[columns], float(np.linalg.norm(z))))
        c[columns] -= rng.random() * scale * z
    step = x - inside
    active = rng.random(n) < 0.4
    active[n - 1] = True  # it is in no ball, or would be in both
    c -= np.where(active, rng.random(n) * np.sign(step), 0)
    reach = np.where(active, 0, rng.random(n))
    lower, upper = np.minimum(x, inside) - reach - (step > 0), np.maximum(x, inside) + reach + (step < 0)
    at = rng.random(m) < 0.6
    change = A @ step  # towards the side that is active
    y = -np.where(at, rng.random(m) * np.sign(change), 0)
    sides = np.stack([A @ x, A @ inside])
    gap = np.where(at, 0, rng.random(m))
    row_lower, row_upper = sides.min(axis=0) - gap - (change > 0), sides.max(axis=0) + gap + (change < 0)
    p = problem(c + A.T @ y, A, (row_lower, row_upper), (lower, upper), 0.5, balls)
    return p, x, inside, y


@pytest.mark.parametrize(
    ("overlap", "count"), mostly_slow([(False, 25), (True, 25), (False, 100), (True, 100)], [(False, 25), (True, 25)])
)
def test_rows_box_and_balls_together(overlap: bool, count: int) -> None:
    rng = np.random.default_rng(7)
    for _ in range(count):
        p, x, inside, y = with_known_optimum(rng, overlap)
        close = x + 1e-11 * (inside - x)
        assert is_feasible(p, exactly(close))
        lowest = dot(exactly(p.c), exactly(close)) + Fraction(p.offset)
        for other in multipliers(rng, y):
            assert not above(safe_bound(p, other), lowest)
            assert not proves_infeasible(p, other)
        if not overlap:
            assert safe_bound(p, y) == pytest.approx(float(lowest), abs=1e-9)
        without = problem(p.c, p.A.toarray(), (p.row_lower, p.row_upper), (p.col_lower, p.col_upper), p.offset)
        assert safe_bound(p, y) >= safe_bound(without, y) - 1e-12


def test_balls_prove_infeasibility_together_with_rows() -> None:
    ball = ball_of(PAIR, [2.0, -2.0], [0.0, 2.0], 1.0)  # around (0, 1), of radius 1/2
    reach = 1 + math.sqrt(0.5)  # of x + y on it
    beyond = problem([1, 1], [[1, 1]], ([reach + 1e-9], [INF]), OPEN_BOX, balls=[ball])
    touching = problem([1, 1], [[1, 1]], ([reach - 1e-9], [INF]), OPEN_BOX, balls=[ball])
    assert proves_infeasible(beyond, [1])
    assert not proves_infeasible(beyond, [-1])
    assert not proves_infeasible(touching, [1])
    box = ([-INF, -INF], [INF, 0.5])  # then (0, 1/2) is the only point
    assert proves_infeasible(problem([0, 0], [[1, 0]], ([1e-3], [INF]), box, balls=[ball]), [1])


NORMS = [([1], 1), ([3, 4], 5), ([1, 2, 2], 3), ([2, 3, 6], 7), ([2, 4, 5, 6], 9)]


def on_spheres(rng: np.random.Generator) -> tuple[Problem, list[Vector], Fraction]:
    """(problem, multipliers of its balls, its minimum): a fixed point on the surface of some balls, all the same one.

    Any multipliers along S x + s give its value, however large they are; these are rounded.
    """
    u, norm = NORMS[int(rng.integers(len(NORMS)))]
    n, g, h, k = len(u), *(int(e) for e in rng.integers(-200, 201, 3))
    of_scale = rng.integers(-200, 201, n)
    x, scale = np.ldexp(rng.integers(1, 2**20, (2, n)) * rng.choice([-1, 1], (2, n)), [h - of_scale, g - h + of_scale])
    point = np.ldexp(rng.permutation(u) * rng.choice([-1.0, 1.0], n), g)
    ball = NormBall(np.arange(n), scale, point - scale * x, np.ldexp(norm, g))  # 40 bits a product: nothing is lost
    balls = [ball] * int(rng.choice([1, 30]))
    c = np.ldexp(rng.normal(size=n) * rng.choice([0.0, 1.0], n), k - h + of_scale)
    shares = [-np.ldexp(rng.random(), k - g + int(rng.integers(-5, 30))) * point for _ in balls]
    p = problem(c, [], NO_ROWS, (x, x), 0.0, balls)
    assert is_feasible(p, exactly(x))
    return p, shares, dot(exactly(c), exactly(x))


def test_any_multipliers_of_the_balls_give_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    plainly_wrong = 0
    for _ in range(500):
        p, shares, exact = on_spheres(rng)
        monkeypatch.setattr(sys.modules["corgi_solvers.safe_bound"], "_shares", lambda *_, shares=shares: shares)
        bound = safe_bound(p, [])
        assert not above(bound, exact)
        assert bound > -INF
        priced = [
            b.scale * q * p.col_lower + q * b.shift + b.radius * np.linalg.norm(q) / q.size
            for b, q in zip(p.balls, shares, strict=True)
        ]
        plainly_wrong += above(float((p.c * p.col_lower - sum(priced)).sum()), exact)
    assert plainly_wrong > 100


def test_a_norm_of_denormal_multipliers_is_not_taken_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    p = BALLS["the norm of a ball's denormal multipliers"]  # 1.4 w, which is w as a float, times 2^1000
    exact = closed_form(p)
    assert exact is not None
    monkeypatch.setattr(sys.modules["corgi_solvers.safe_bound"], "_shares", lambda *_: [np.array([w, w])])
    assert not above(safe_bound(p, []), exact)
    assert safe_bound(p, []) == pytest.approx(float(exact))
