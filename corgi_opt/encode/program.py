"""Expressions of one question as a program: inputs and unstable ReLUs that matter are its variables.

Variables, all of order one so that a solver's absolute tolerances mean the same everywhere:

* ``t`` in [-1, 1] per input that matters: ``x = middle + radius * t``;
* ``s`` in [0, u / (u - l)] per unstable ReLU that matters: ``relu(z) = (u - l) * s``.

A pre-activation is a dense row over the variables before it: ``z = (u - l) * (row @ [t, s] + constant)``. (Dense
eliminated rows beat sparse equality rows several times in the MILP.) A unit matters if an output depends on it at all:
a candidate of a pool may feed only units proven inactive, or cancel out of a maximum that is proven to be its rival
(in ``a + relu(b - a)`` with b >= a nothing of a is left).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from corgi_opt._deadline import Deadline
from corgi_opt.bounding.tolerance import gamma
from corgi_opt.encode.expressions import Expression, Expressions, Indices, Vector
from corgi_opt.errors import NumericalError
from corgi_opt.problem.region import Ball, Norm

TINY = 1e-9
"""Row coefficients below this are cleared, because solvers drop them silently."""

RESIDUE = 1e-12
"""Terms of an output that vary by less than this share of its largest are what rounding left of a cancellation."""

NARROW = 1e-7
"""Narrowest pre-activation interval kept, relative to the largest of its layer; a narrower one is widened (sound)."""

OVER_ERROR = 100.0
"""How many times wider than what rounding may hide of its row a unit's interval is at least."""

SMALLEST = 1e-250
"""Largest coefficients below this are not divided by."""

MOST_NONZEROS = 20_000_000
"""Largest program that is built; beyond it a solver has no hope either."""


class TooLargeError(Exception):
    """A program would hold more than MOST_NONZEROS coefficients."""


@dataclass(frozen=True, eq=False)
class Program:
    """Outputs as functions of ``[t, s]`` over the graph of unstable ReLUs, before those are relaxed or encoded.

    ``rows`` (U, n+U) csr and ``constants`` (U,): pre-activations in units of ``u - l``, which are ``widths`` (U,);
    ``lower``, ``upper`` (U,): their proven bounds in the same units (upper - lower = 1), widened by ``grown`` (U,) in
    all where an interval was too narrow for solvers. ``slack`` (U,): how far a row may be off, because tiny
    coefficients were cleared and the others rounded, and how far rounding may move D for a multiplier of 1.
    ``cuts`` (M, n+U) csr, ``cut_upper`` (M,): further rows ``cuts @ [t, s] <= cut_upper`` that hold (the direct planes
    of pooling windows). ``outputs`` (F, n+U) csr and ``output_constants`` (F,): the outputs in units of ``scales``
    (F,), their largest coefficients. ``residue`` (F,): how far an output may be off by rounding and by the terms that
    were left out because they hardly vary; it is taken off every bound of the output.

    ``places`` (n, 3): channel, row, column of each input in the image. An input's distance to the centre, in units of
    eps, is ``|reach * t + shift|``; ``norm`` bounds all of them together. ``units_at`` (U,): columns of
    :class:`Expressions`.
    """

    norm: Norm
    places: NDArray[np.int64]
    middle: Vector
    radius: Vector
    shift: Vector
    reach: Vector
    rows: sparse.csr_array
    constants: Vector
    slack: Vector
    lower: Vector
    upper: Vector
    widths: Vector
    grown: Vector
    cuts: sparse.csr_array
    cut_upper: Vector
    outputs: sparse.csr_array
    output_constants: Vector
    scales: Vector
    residue: Vector
    units_at: Indices

    @property
    def inputs(self) -> int:
        return len(self.middle)

    @property
    def units(self) -> int:
        """Number of unstable ReLUs."""
        return len(self.lower)

    @property
    def fingerprint(self) -> bytes:
        """Two programs that have the same are the same."""
        hashed = sha256(self.norm.encode())
        for value in vars(self).values():
            for part in (value.data, value.indices, value.indptr) if isinstance(value, sparse.csr_array) else (value,):
                if isinstance(part, np.ndarray):
                    hashed.update(np.ascontiguousarray(part).data)
        return hashed.digest()

    def image(self, variables: Vector, background: Tensor) -> Tensor:
        """The image (1, C, H, W) of a solution: its inputs, on ``background`` everywhere else."""
        image = background.clone()
        values = self.middle + self.radius * np.clip(variables[: self.inputs], -1.0, 1.0)
        channel, row, column = self.places.T
        image[0, channel, row, column] = torch.from_numpy(values)
        return image

    def within(self, lower: Vector, upper: Vector) -> Program:
        """The same with other intervals (U,) of its units, in the units that it has; they hold zero."""
        width = upper - lower
        columns = np.concatenate([np.ones(self.inputs), width])
        rows, outputs = scaled(self.rows, 1 / width, columns), scaled(self.outputs, None, columns)
        constants = self.constants / width
        rounded = gamma(2) * (np.asarray(abs(rows).sum(axis=1)) + np.abs(constants) + 1)
        return replace(
            self,
            rows=rows,
            constants=constants,
            slack=self.slack / width + rounded,
            lower=lower / width,
            upper=upper / width,
            widths=self.widths * width,
            grown=self.grown / width,
            cuts=scaled(self.cuts, None, columns),
            outputs=outputs,
            residue=self.residue + gamma(2) * np.asarray(abs(outputs).sum(axis=1)),
        )

    def errors(self, tolerance: float) -> Vector:
        """How far an output (F,) may be off, in its own unit, where every row and bound is kept to a tolerance only."""
        own = 2 * tolerance + self.slack + self._overspent(abs(self.rows), tolerance)
        outputs = abs(self.outputs)
        moved = self._moved(np.full(self.inputs, tolerance), own)
        return np.asarray(outputs @ moved + self._overspent(outputs, tolerance) + self.residue)

    @property
    def looseness(self) -> Vector:
        """How much lower a relaxation of an output (F,) may be, in its own unit, because intervals were widened."""
        return np.asarray(abs(self.outputs) @ self._moved(np.zeros(self.inputs), self.grown))

    def _moved(self, inputs: Vector, own: Vector) -> Vector:
        """How far variables (n+U,) may move where inputs (n,) do, and each unit (U,) by its own beside."""
        size, moved = abs(self.rows), np.concatenate([inputs, own])
        for unit in range(self.units):  # a row reads units before it only
            row = slice(*size.indptr[unit : unit + 2])
            moved[self.inputs + unit] += size.data[row] @ moved[size.indices[row]]
        return moved

    def _overspent(self, size: sparse.csr_array, tolerance: float) -> Vector:
        """How far rows of these absolute coefficients may move where an image leaves an L1 or L2 ball, as far as the
        tolerances of the ball's rows allow (of an L1 ball: of each ``a`` twice, and of their sum)."""
        if self.norm == "inf" or not self.inputs:
            return np.zeros(size.shape[0])
        per_distance = sparse.csr_array(size[:, : self.inputs] @ sparse.diags_array(1 / self.reach))
        if self.norm == "1":
            return (2 * self.inputs + 1) * tolerance * np.asarray(per_distance.max(axis=1).todense()).ravel()
        return np.asarray(tolerance * np.sqrt(per_distance.power(2).sum(axis=1)))


def scaled(rows: sparse.csr_array, by: Vector | None, columns: Vector) -> sparse.csr_array:
    """Rows times ``by`` (a number each) and ``columns``, with the same nonzeros in the same places."""
    data = rows.data * columns[rows.indices]
    if by is not None:
        data = data * np.repeat(by, np.diff(rows.indptr))
    return sparse.csr_array((data, rows.indices, rows.indptr), rows.shape)


def cleared(rows: sparse.csr_array, upper: Vector) -> tuple[sparse.csr_array, Vector]:
    """``rows @ v <= upper`` without tiny coefficients, relaxed by what they could add (every |v| is at most 1)."""
    kept = rows.copy()  # not a view: eliminate_zeros works in place
    tiny = np.abs(kept.data) < TINY
    dropped = np.where(tiny, np.abs(kept.data), 0.0)
    slack = sparse.csr_array((dropped, kept.indices, kept.indptr), kept.shape).sum(axis=1)
    kept.data[tiny] = 0.0
    kept.eliminate_zeros()
    return kept, upper + slack


def compile_program(expressions: Expressions, ball: Ball, outputs: Sequence[Expression], deadline: Deadline) -> Program:
    """The program of some outputs over the region of ``ball``, in float64.

    Raises TooLargeError, and TimeoutError when the deadline passes.
    """
    kept = [_without_residue(expressions, ball, output) for output in outputs]
    layers, cuts = _gathered(expressions, kept, deadline)
    program = _assembled(expressions, ball, layers, cuts, kept)
    numbers = (program.rows.data, program.constants, program.slack, program.cut_upper, program.outputs.data)
    if not all(np.isfinite(part).all() for part in (*numbers, program.output_constants, program.scales)):
        raise NumericalError("the coefficients of its encoding overflow float64")
    return program


def _without_residue(expressions: Expressions, ball: Ball, output: Expression) -> Expression:
    """The output without terms that hardly vary: they count as their middle, which is off by half their range."""
    low, high = expressions.ranges(output.columns, ball)
    varies = np.abs(output.values) * ((high - low) / 2)
    kept = varies > RESIDUE * varies.max(initial=0.0)
    middle = float(output.values[~kept] @ ((low + high) / 2)[~kept])
    size = float(np.abs(output.values[~kept]) @ np.maximum(np.abs(low), np.abs(high))[~kept])
    error = float(varies[~kept].sum()) + gamma(len(kept)) * size
    rest = replace(output, columns=output.columns[kept], values=output.values[kept], error=output.error + error)
    return rest.plus(middle)


@dataclass(frozen=True, eq=False)
class _Layer:
    """Units of one ReLU node that matter: columns (U,), pre-activations, and their bounds (2, U)."""

    columns: Indices
    rows: list[Expression]
    proven: Vector

    @cached_property
    def bounds(self) -> Vector:
        """``proven``, each side widened to NARROW of the largest and to OVER_ERROR times its row's rounding."""
        rounded = np.array([row.error for row in self.rows])
        narrow = np.maximum(NARROW * np.abs(self.proven).max(), OVER_ERROR * rounded)
        return np.stack([np.minimum(self.proven[0], -narrow), np.maximum(self.proven[1], narrow)])

    @property
    def grown(self) -> Vector:
        """How much wider ``bounds`` are than ``proven`` (U,)."""
        return np.asarray(np.abs(self.bounds - self.proven).sum(axis=0))


def _gathered(
    expressions: Expressions, outputs: Sequence[Expression], deadline: Deadline
) -> tuple[list[_Layer], list[Expression]]:
    """The units that outputs depend on, layer by layer from the image up, and the rows of direct planes (cuts)."""
    pending: dict[str, set[int]] = {}
    layers: list[_Layer] = []
    cuts: list[Expression] = []
    count = 0

    def follow(read: Sequence[Expression]) -> None:
        nonlocal count
        count += sum(len(e.columns) for e in read)
        if count > MOST_NONZEROS:
            raise TooLargeError(f"its encoding takes more than {MOST_NONZEROS:,} coefficients")
        every = np.unique(np.concatenate([part for e in read for part in (e.columns, e.windows)]))
        for name, part in expressions.by_node(every).items():
            pending.setdefault(name, set()).update(part.tolist())

    follow(outputs)
    for name in reversed(expressions.graph.order):
        if name not in pending or name == expressions.graph.input:
            continue
        columns = np.array(sorted(pending.pop(name)), dtype=np.int64)
        if name in expressions.bounded.planes:
            rows = expressions.cuts(name, columns, deadline)
            cuts += rows
        else:
            rows = expressions.units(name, columns, deadline)
            layers.insert(0, _Layer(columns, rows, expressions.bounds(name, columns)))
        if rows:
            follow(rows)
    return layers, cuts


def _assembled(
    expressions: Expressions,
    ball: Ball,
    layers: list[_Layer],
    cuts: list[Expression],
    outputs: Sequence[Expression],
) -> Program:
    units_at = np.concatenate([np.zeros(0, dtype=np.int64), *(layer.columns for layer in layers)])
    bounds = np.concatenate([np.zeros((2, 0)), *(layer.bounds for layer in layers)], axis=1)
    width = bounds[1] - bounds[0]
    rows = [e for layer in layers for e in layer.rows]
    low, high, center = (side.flatten().numpy() for side in (ball.lower, ball.upper, ball.center))
    middle, radius = (low + high) / 2, (high - low) / 2
    every = [*rows, *cuts, *outputs]
    read = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *(e.columns for e in every)]))
    inputs = read[read < expressions.inputs]
    inputs = inputs[radius[inputs] > 0]
    middle_there, largest = np.zeros(expressions.columns), np.zeros(expressions.columns)
    middle_there[: expressions.inputs] = middle
    largest[: expressions.inputs] = np.abs(middle) + radius
    largest[units_at] = bounds[1]
    size = np.concatenate([radius[inputs], width])
    rounds = gamma(len(inputs) + len(units_at) + max((len(e.columns) for e in every), default=0))

    def table(part: Sequence[Expression]) -> tuple[sparse.csr_array, Vector, Vector]:
        """Coefficients and constants over the variables of the program, and what rounding may hide of each row."""
        data = [np.zeros(0), *(e.values for e in part)]
        at = [np.zeros(0, dtype=np.int64), *(e.columns for e in part)]
        ends = np.cumsum([0, *(len(e.columns) for e in part)])
        matrix = sparse.csr_array((np.concatenate(data), np.concatenate(at), ends), (len(part), expressions.columns))
        at_zero = np.array([e.constant for e in part])
        constants = at_zero + matrix @ middle_there
        error = np.array([e.error for e in part]) + rounds * (np.abs(at_zero) + abs(matrix) @ largest)
        scaled = sparse.csr_array(matrix[:, np.concatenate([inputs, units_at])] @ sparse.diags_array(size))
        return scaled, constants, error

    (z, z_constant, z_error), (cut, cut_constant, cut_error) = table(rows), table(cuts)
    out, out_constant, out_error = table(outputs)
    z, z_constant = _divided(z, width), z_constant / width
    # the error of the row itself, and of what is computed with it: D, the rows of an LP
    z, slack = cleared(z, z_error / width + rounds * (abs(z).sum(axis=1) + np.abs(z_constant) + 1))
    most = _largest(cut)
    cut, cut_upper = cleared(_divided(cut, most), (cut_error - cut_constant) / most)
    scales = _largest(out)
    out, out_constant = _divided(out, scales), out_constant / scales
    residue = out_error / scales + rounds * (abs(out).sum(axis=1) + np.abs(out_constant))
    eps = ball.eps if ball.eps > 0 else 1.0
    return Program(
        norm=ball.norm,
        places=np.stack(np.unravel_index(inputs, ball.center.shape[1:]), axis=1),
        middle=middle[inputs],
        radius=radius[inputs],
        shift=(middle[inputs] - center[inputs]) / eps,
        reach=radius[inputs] / eps,
        rows=z,
        constants=z_constant,
        slack=slack,
        lower=bounds[0] / width,
        upper=bounds[1] / width,
        widths=width,
        grown=np.concatenate([np.zeros(0), *(layer.grown for layer in layers)]) / width,
        cuts=cut,
        cut_upper=cut_upper,
        outputs=out,
        output_constants=out_constant,
        scales=scales,
        residue=residue,
        units_at=units_at,
    )


def _divided(rows: sparse.csr_array, by: Vector) -> sparse.csr_array:
    return sparse.csr_array(sparse.diags_array(1 / by) @ rows)


def _largest(rows: sparse.csr_array) -> Vector:
    """The largest coefficient of every row; 1 where there is none to speak of."""
    most = np.asarray(abs(rows).max(axis=1).todense()).ravel() if rows.shape[1] else np.zeros(rows.shape[0])
    return np.where(most > SMALLEST, most, 1.0)
