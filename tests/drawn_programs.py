"""Random programs of a few units, and what is true of them by enumeration of which units are on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from corgi_solvers import Problem
from scipy import sparse
from scipy.optimize import linprog

from corgi_opt.encode.program import Program

INF = np.inf


def drawn(seed: int, inputs: int = 2, units: int = 3, outputs: int = 1) -> Program:
    """A program in a box: rows over the inputs and the units before them, bounds by intervals, outputs over all."""
    rng = np.random.default_rng(seed)
    rows, constants, lower, upper = np.zeros((units, inputs + units)), np.zeros(units), np.zeros(units), np.zeros(units)
    low, high = np.r_[-np.ones(inputs), np.zeros(units)], np.r_[np.ones(inputs), np.zeros(units)]
    for unit in range(units):
        row = np.where(np.arange(inputs + units) < inputs + unit, rng.normal(size=inputs + units), 0.0)
        plus, minus = np.maximum(row, 0), np.minimum(row, 0)
        least, most = plus @ low + minus @ high, plus @ high + minus @ low
        shift = rng.uniform(0.2, 0.8) * (most - least) - most  # so that zero is inside
        rows[unit], constants[unit] = row / (most - least), shift / (most - least)
        lower[unit], upper[unit] = (least + shift) / (most - least), (most + shift) / (most - least)
        high[inputs + unit] = upper[unit]
    held = rng.normal(size=(outputs, inputs + units))
    scales = np.abs(held).max(axis=1)
    zeros, column = np.zeros(units), np.arange(inputs)
    return Program(
        norm="inf",
        places=np.stack([0 * column, 0 * column, column], axis=1),
        middle=np.full(inputs, 0.5),
        radius=np.full(inputs, 0.25),
        shift=np.zeros(inputs),
        reach=np.ones(inputs),
        rows=sparse.csr_array(rows),
        constants=constants,
        slack=zeros,
        lower=lower,
        upper=upper,
        widths=np.ones(units),
        grown=zeros,
        cuts=sparse.csr_array((0, inputs + units)),
        cut_upper=np.zeros(0),
        outputs=sparse.csr_array(held / scales[:, None]),
        output_constants=rng.normal(size=outputs) * 0.3,
        scales=scales,
        residue=np.zeros(outputs),
        units_at=np.arange(units),
    )


def at(program: Program, t: np.ndarray) -> np.ndarray:
    """The variables [t, s] that inputs (n,) make."""
    v, rows = np.r_[t, np.zeros(program.units)], program.rows.toarray()
    for unit in range(program.units):
        v[program.inputs + unit] = max(0.0, rows[unit] @ v + program.constants[unit])
    return v


def outputs_at(program: Program, v: np.ndarray) -> np.ndarray:
    """In units of their scales."""
    return program.outputs.toarray() @ v + program.output_constants


def points(program: Program, count: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Inputs, half of them at corners of the box."""
    t = np.random.default_rng(seed).uniform(-1, 1, (count, program.inputs))
    t[count // 2 :] = np.sign(t[count // 2 :])
    yield from t


def patterns(program: Program) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """For every choice of units that are on: rows ``a @ t <= b`` of where it is so, and outputs ``c @ t + d`` there."""
    n, rows, held = program.inputs, program.rows.toarray(), program.outputs.toarray()
    for on in itertools.product((0, 1), repeat=program.units):
        values = np.zeros((n + program.units, n + 1))  # each variable as an affine function of t
        values[:n, :n] = np.eye(n)
        a, b = [], []
        for unit, chosen in enumerate(on):
            z = rows[unit] @ values
            z[n] += program.constants[unit]
            sign = -1 if chosen else 1
            a.append(sign * z[:n])
            b.append(-sign * z[n])
            values[n + unit] = chosen * z
        found = held @ values
        yield np.array(a), np.array(b), found[:, :n], found[:, n] + program.output_constants


def exact_intervals(program: Program, goal: float, phases: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The least and largest pre-activations (U,) of images with an output of at most ``goal``, and with ``phases`` (U,)
    where they are given; least above largest where there is no such image."""
    n, rows = program.inputs, program.rows.toarray()
    low, high = np.full(program.units, np.inf), np.full(program.units, -np.inf)
    signs = itertools.product((-1, 1), repeat=program.units)
    for on, (a, b, c, d) in zip(signs, patterns(program), strict=True):
        if phases is not None and (np.array(on) * phases < 0).any():
            continue
        table, right = np.vstack([a, c[:1]]), np.r_[b, goal - d[0]]
        values = np.zeros((n + program.units, n + 1))
        values[:n, :n] = np.eye(n)
        for unit, sign in enumerate(on):
            z = rows[unit] @ values
            z[n] += program.constants[unit]
            values[n + unit] = (sign > 0) * z
            for way, side, better in ((1, low, min), (-1, high, max)):
                answer = linprog(way * z[:n], table, right, bounds=(-1, 1))
                if answer.status == 0:
                    side[unit] = better(side[unit], way * float(answer.fun) + z[n])
    return low, high


def least(program: Program, held: int | None = None) -> float:
    """The minimum of the first output, in units of its scale; where all from ``held`` on are not negative."""
    best = INF
    for a, b, c, d in patterns(program):
        first = program.outputs.shape[0] if held is None else held
        table, right = np.vstack([a, -c[first:]]), np.r_[b, d[first:]]
        answer = linprog(c[0], table, right, bounds=(-1, 1))
        if answer.status == 0:
            best = min(best, float(answer.fun) + d[0])
    return best


def most_at_once(program: Program, thresholds: np.ndarray) -> int:
    """How many of the outputs can be at or below their thresholds (F,) at once."""
    best, count = 0, program.outputs.shape[0]
    for a, b, c, d in patterns(program):
        for some in itertools.product((False, True), repeat=count):
            chosen = np.array(some)
            table, right = np.vstack([a, c[chosen]]), np.r_[b, thresholds[chosen] - d[chosen]]
            if sum(some) > best and linprog(np.zeros(program.inputs), table, right, bounds=(-1, 1)).status == 0:
                best = sum(some)
    return best


def optimum(problem: Problem) -> float:
    """By scipy."""
    from encoding import scipy_lp, scipy_milp

    return scipy_milp(problem) if problem.is_mip else scipy_lp(problem)
