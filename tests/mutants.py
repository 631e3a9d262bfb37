# ruff: noqa: E501 (a mutant is a line of source)
"""Breaks the checker in one place at a time, and sees whether its tests notice: ``python tests/mutants.py``.

Each mutant is a copy of the package in a temporary folder with one line changed; the tests in tests/proof run against
it, one after another until the first that fails. Prints who survived. Takes some minutes a dozen.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
FILES = (
    "test_arithmetic.py",
    "test_tally.py",
    "test_rows.py",
    "test_operations.py",
    "test_network.py",
    "test_archive.py",
    "test_one_input.py",
    "test_bounds.py",
    "test_region.py",
    "test_tree.py",
    "test_program.py",
    "test_leaves.py",
    "test_clips.py",
    "test_new_operation.py",
    "test_statement.py",
    "test_checker.py",
    "test_certificate.py",
)

# Three error terms are not here, as what others take off covers them wherever we looked: the rounding of a sum of two
# consumers' coefficients, of phi's products, and of a tree's coefficients on their way down (its rows' own slack covers
# it).
MUTANTS: tuple[tuple[str, str, str], ...] = (
    # rounding that is not taken off
    ("arithmetic.py", "return n * UNIT * (1 + 2.0**-10)", "return 0.0"),
    ("arithmetic.py", "tiny = 2.0**-1074", "tiny = 0.0"),
    ("arithmetic.py", "np.nextafter(np.sqrt(square), np.inf)", "np.sqrt(square) * (1 - 1e-12)"),
    ("arithmetic.py", "if Fraction(nearest) <= value else", "if True else"),
    ("tally.py", "self.value - self.uncertain, -np.inf", "self.value, -np.inf"),
    ("tally.py", "self.size = self.size + size", "pass"),
    ("tally.py", "self.error = self.error + by", "pass"),
    ("tally.py", "np.where(np.isfinite(below), below, -np.inf)", "np.where(np.isnan(below), 1e300, below)"),
    ("bounds.py", "self.arithmetic.down(low - of(error))", "self.arithmetic.down(low)"),
    ("bounds.py", "self.arithmetic.up(high + of(error))", "self.arithmetic.up(high)"),
    ("bounds.py", "self._worth_of(rows, worth, self.arithmetic.gamma(terms + 2), tally)", "pass"),
    ("program.py", "tally.add(-np.abs(mu) * of(self.slack))", "pass"),
    ("program.py", "tally.may_be_off(of_what.off_by)", "pass"),
    ("program.py", "tally.may_be_off(worth + len(row) * self.arithmetic.tiny)", "pass"),
    ("program.py", "on = _greatest(self, rows - slopes, self.constants[some], self.slack[some])", "on = off"),
    ("program.py", "shifts[some] = slopes, of(np.maximum(off, on))", "shifts[some] = slopes, of(on)"),
    # signs, sides and places
    ("bounds.py", "low = image(plus, lows) + image(minus, highs)", "low = image(plus, lows) + image(minus, lows)"),
    ("bounds.py", "high = image(plus, highs) + image(minus, lows)", "high = image(plus, highs) + image(minus, highs)"),
    ("bounds.py", "low = np.where(where, np.maximum(self.lower[a], self.lower[b]), -np.inf)", "low = self.upper[a]"),
    ("bounds.py", "high = np.where(where, np.maximum(self.upper[a], self.upper[b]), np.inf)", "high = self.upper[a]"),
    ("bounds.py", "(a_coef == -1)", "(a_coef == a_coef)"),
    ("bounds.py", "return values[: len(from_below)], -values[len(from_below) :]", "return values[: len(from_below)], values[len(from_below) :]"),
    ("bounds.py", "least = np.minimum(at_low, at_high)", "least = np.maximum(at_low, at_high)"),
    ("bounds.py", "np.minimum(least, arithmetic.zeros(1))", "least"),
    ("bounds.py", "at_high = lam * of(np.maximum(high, 0.0)) - mu * of(high)", "at_high = lam * of(high) - mu * of(high)"),
    ("bounds.py", "at_low = lam * of(np.maximum(low, 0.0)) - mu * of(low)", "at_low = -mu * of(low) * 0"),
    ("region.py", "np.where(lam > 0, arithmetic.of(low), arithmetic.of(high))", "np.where(lam > 0, arithmetic.of(high), arithmetic.of(low))"),
    ("region.py", "np.where(rest > 0, before, after)", "np.minimum(before, after)"),
    ("region.py", "tally.add(-(size * arithmetic.of(eps))[:, None])", "pass"),
    ("region.py", "np.nextafter(self.center - self.eps, -np.inf)", "(self.center - self.eps * (1 - 1e-9))"),
    ("region.py", "np.nextafter(self.center + self.eps, np.inf)", "(self.center + self.eps * (1 - 1e-9))"),
    ("region.py", "np.maximum(low, self.ends[0])", "np.maximum(low, self.ends[0] + 1e-3)"),
    ("operations.py", "rows.corners * np.array(self.stride) - np.array(self.padding)", "rows.corners * np.array(self.stride) + np.array(self.padding)"),
    ("operations.py", "rows.corners * np.array(self.stride) + np.array(self.offset)", "rows.corners * np.array(self.stride) - np.array(self.offset)"),
    ("rows.py", "return replace(rows, coefs=rows.coefs * there)", "return rows"),
    ("clips.py", "low = np.where(phases > 0, np.maximum(self.low, 0.0), self.low)", "low = np.maximum(self.low, 0.0)"),
    ("clips.py", "np.where(phases < 0, np.minimum(self.high, 0.0), self.high)", "np.where(phases <= 0, 0.0, self.high)"),
    ("clips.py", "np.asarray((self.low > self.high).any(axis=1))", "np.asarray((self.low > -self.high).any(axis=1))"),
    ("program.py", "np.where(here < 0, here * of(np.clip(lines.mixes[:, block], 0.0, 1.0)), here * 0)", "here * of(np.clip(lines.mixes[:, block], 0.0, 1.0))"),
    ("program.py", "of(np.clip(lines.mixes[:, block], 0.0, 1.0))", "of(lines.mixes[:, block])"),
    ("clips.py", "g * output.value, -g * of(goal)", "g * output.value, g * of(goal)"),
    ("clips.py", "own.coefs + g[:, None] * output.coefs", "own.coefs - g[:, None] * output.coefs"),
    ("clips.py", "whole.may_be_off(own.uncertain + g * output.uncertain * (GENEROUS if whole.rounds else 1))", "pass"),
    ("clips.py", "-lower[negative])", "lower[negative])"),
    ("clips.py", "np.maximum.at(low, (row[~negative], sides[~negative]), lower[~negative])", "np.maximum.at(low, (row[~negative], sides[~negative]), lower[~negative] + 1e-3)"),
    ("clips.py", "np.flatnonzero(shares.flatten() >= 0)", "np.flatnonzero(shares.flatten() >= -2)"),
    ("clips.py", "np.where(sides < program.units, 1.0, -1.0)", "np.where(sides < program.units, 1.0, 1.0)"),
    ("clips.py", "about = self._own[own[some]], output[row[some]]", "about = self._own[own[some]], output[row[some] * 0]"),
    ("clips.py", "entry = self._first[rows][row] + within", "entry = self._first[row] + within"),
    ("leaves.py", "return np.asarray(np.minimum(found, self.goal))", "return found"),
    ("leaves.py", "tree.clips.goal - shift", "tree.clips.goal"),
    ("leaves.py", "if not self.crossed:", "if True:"),
    ("leaves.py", "ends[place[descent.parents[rows]]]", "ends[place[descent.parents[rows]] * 0]"),
    ("leaves.py", "ends = root.repeated(len(rows)) if level == 0 else ends[place[descent.parents[rows]]]", "ends = ends[place[descent.parents[rows]]] if level else root.repeated(len(rows))\n            rows = rows[::-1]"),
    ("leaves.py", "ends = ends.under(self.tree.phases[rows])", "pass"),
    ("leaves.py", "found[~tree.descent.leaves] = np.inf", "found[tree.descent.leaves] = np.inf"),
    ("program.py", "sign[:, None] * self.rows[units], sign * self.constants[units]", "sign[:, None] * self.rows[units], self.constants[units]"),
    # what is not looked at
    ("tree.py", "        if not len(part):\n            return False\n", "        if not len(part):\n            continue\n"),
    ("tree.py", "if (here == 0).all(axis=1).any():", "if (here == 0).any():"),
    ("tree.py", "        for side in (1, -1):", "        for side in (1,):"),
    ("program.py", "if not np.array_equal(order, np.arange(self.units)):", "if False:"),
    ("bounds.py", "            self._justify(node, claims)\n", ""),
    ("bounds.py", "if not (proven >= said).all():", "if not (proven >= said - 1e-9).all():"),
    ("bounds.py", 'if (claims.flat < 0).any() or', "if"),
    ("checker.py", "if claim.sha256 != sha256:", "if False:"),
    ("checker.py", "network.sha256_of_logits if claim.says.logits else network.sha256", "claim.sha256 if claim.sha256 == network.sha256 else network.sha256_of_logits"),
    ("tree.py", "if not covers(leaves):", "if False:"),
    ("tree.py", "leaves = leaves[self.descent.leaves]", "pass"),
    ("tree.py", "if ((said != 0) & (said != leaves[below])).any():", "if False:"),
    ("tree.py", "(parents >= np.arange(len(parents))).any()", "False"),
    ("tree.py", "if self.clips is None:", "if False:"),
    ("checker.py", "        proof.tree.require_whole()\n", ""),
    ("checker.py", "leaves.lower().min(keepdims=True)", "program.lower()[:-1].min(initial=np.inf, keepdims=True)"),
    ("checker.py", "leaves.lower().min(keepdims=True)", "leaves.lower().max(keepdims=True)"),
    ("checker.py", "    if len(statement.anchors):  # an atom", "    if False:  # an atom"),
    ("checker.py", "if not margin > 0:", "if not margin > -1e-3:"),
    ("checker.py", "    require_inside(claim.region, image)\n", ""),
    ("checker.py", "if not statement.slack(statement.least(*at_center)).min() > 0:", "if False:"),
    ("checker.py", "np.flatnonzero((terms == parts).all(axis=1) & (coefs == signs).all(axis=1))", "np.flatnonzero((terms == parts).all(axis=1))"),
    ("statement.py", "place = held.shape[1] - self.need", "place = np.minimum(held.shape[1] - self.need + 1, held.shape[1] - 1)"),
    ("statement.py", "return -self._total(self.terms, -self.coefs, low, high)", "return self._total(self.terms, self.coefs, low, high)"),
    ("statement.py", "side = np.where(coef > 0, low[terms[:, term]], high[terms[:, term]])", "side = np.where(coef > 0, high[terms[:, term]], low[terms[:, term]])"),
    ("statement.py", "(low[self.anchors[:, 0]] > high[self.anchors[:, 1]])", "(high[self.anchors[:, 0]] > low[self.anchors[:, 1]])"),
    ("statement.py", "_require(len(np.unique(named)) == len(named)", "_require(True"),
    ("statement.py", "_require(bool((self.need <= sizes).all())", "_require(True"),
    ("statement.py", "shift[at] = shift[at] + coef[at] * self._shifts[head[at]]", "pass"),
    ("statement.py", "own[at] / arithmetic.of([pixels])[0]", "own[at]"),
    ("checker.py", '"1": lambda: sum(moved) <= eps', '"1": lambda: max(moved, default=Fraction(0)) <= eps'),
    ("checker.py", '"2": lambda: sum(m * m for m in moved) <= eps * eps', '"2": lambda: max(moved, default=Fraction(0)) <= eps'),
    ("checker.py", "if set(certificate.claims) - set(range(network.features + 1)):", "if False:"),
    ("archive.py", 'if stored.kind == "f" and np.isnan(values).any():', "if False:"),
    ("archive.py", "sum(m.file_size for m in members) > MOST_BYTES", "False"),
    ("archive.py", "m.filename == TEXT and m.file_size > MOST_TEXT", "False"),
    ("archive.py", "length > MOST_DIRECTORY", "False"),
    ("network.py", "for array in arrays:", "for array in arrays[:1]:"),
    ("network.py", "            if settings:\n", "            if False:\n"),
)  # fmt: skip


def survives(number: int) -> bool:
    """Whether all tests pass in spite of a mutant."""
    name, old, new = MUTANTS[number]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for part in ("corgi_opt", "solvers", "tests"):
            shutil.copytree(REPO / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(REPO / "pyproject.toml", root)
        path = root / "corgi_opt" / "proof" / name
        source = path.read_text()
        path.write_text(source.replace(old, new))
        environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'solvers'}", "OMP_NUM_THREADS": "1"}
        tests = [f"tests/proof/{file}" for file in FILES if (REPO / "tests" / "proof" / file).exists()]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", *tests]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode in (0, 1, 2), done.stdout + done.stderr
        return done.returncode == 0


def main() -> None:
    for name, old, _ in MUTANTS:
        assert old in (REPO / "corgi_opt" / "proof" / name).read_text(), f"{old!r} is not in {name}"
    chosen = [int(n) for n in sys.argv[1:]] or list(range(len(MUTANTS)))
    with ThreadPoolExecutor(2) as pool:
        alive = [n for n, lived in zip(chosen, pool.map(survives, chosen), strict=True) if lived]
    for number in alive:
        print(f"survived: {number}: {MUTANTS[number]}")
    print(f"killed {len(chosen) - len(alive)} of {len(chosen)}")


if __name__ == "__main__":
    main()
