"""The file: a zip archive of plain arrays and one JSON text. Nothing in it is ever executed or unpickled.

Whoever reads it trusts none of it: sizes are capped before anything is unpacked (archive.py), and what does not look as
it should is a CertificateError.
"""

from __future__ import annotations

import html
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from corgi_opt.errors import CertificateError
from corgi_opt.proof.archive import MOST_BYTES, MOST_MEMBERS, MOST_TEXT, TEXT, array, unpacked
from corgi_opt.proof.arithmetic import Array
from corgi_opt.proof.bounds import Claims
from corgi_opt.proof.region import Clip, Norm, Region
from corgi_opt.proof.statement import Statement, TopPixels
from corgi_opt.proof.tree import Clips, Descent, Tree

FORMAT, VERSION = "corgi-opt certificate", 5
"""Version 3 claims any Statement; in version 4 intervals of a tree's units are clipped, in version 5 in its nodes as
well. Versions 1 (one box for all channels) and 2 (a box for each channel) claim TopPixels: they are read, and written
for a claim of that kind, which the package itself no longer makes."""

HEADER = 256
"""Most bytes that an array's file has besides its numbers."""

ARITHMETIC = (
    "The claim is about the exact real-valued network whose weights are the float64 numbers hashed here, not about any "
    "order of summation or reduced precision that a framework runs it in."
)


@dataclass(frozen=True, eq=False)
class Claim:
    """``says`` holds for every image of the region or, where ``kind`` is "falsified", not for every one.

    ``sha256``: of the network (:class:`corgi_opt.proof.network.Network`), with its bias for a statement on logits.
    ``said``: what the writer calls the statement, as JSON types; the checker does not prove it.
    """

    kind: Literal["certified", "falsified"]
    sha256: str
    region: Region
    says: Statement | TopPixels
    said: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class PartTree:
    """A tree that bounds the sum of ``signs`` times parts: an atom, or one part from below (1) or above (-1)."""

    parts: tuple[int, ...]
    signs: tuple[float, ...]
    tree: Tree


@dataclass(frozen=True, eq=False)
class Certificate:
    """A claim and its proof: ``claims`` of bounds by node and ``trees``, or an image ``witness`` (C, H, W)."""

    claim: Claim
    claims: Mapping[int, Claims] = field(default_factory=dict)
    trees: tuple[PartTree, ...] = ()
    witness: Array | None = None

    def save(self, path: str | Path) -> None:
        """Writes the file; the same certificate always gives the same bytes. Raises CertificateError where a reader
        would not take it."""
        Path(path).write_bytes(self.to_bytes())

    def to_bytes(self) -> bytes:
        self.require_readable()
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(zipfile.ZipInfo(TEXT), json.dumps(self._text(), indent=1), zipfile.ZIP_DEFLATED)
            for name, values in self._arrays().items():
                content = io.BytesIO()
                np.lib.format.write_array(content, np.ascontiguousarray(values), allow_pickle=False)
                archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue(), zipfile.ZIP_DEFLATED)
        return buffer.getvalue()

    def require_readable(self) -> None:
        """Raises CertificateError where a reader would refuse the file as too large."""
        arrays = self._arrays().values()
        size = MOST_TEXT + sum(values.nbytes + HEADER for values in arrays)
        if size > MOST_BYTES or len(arrays) >= MOST_MEMBERS:
            rows = sum(len(proof.tree.phases) for proof in self.trees)
            raise CertificateError(
                f"its {len(self.trees):,} trees of {rows:,} rows in all are more than a file holds; ask for a "
                "proof at a smaller eps"
            )

    def _text(self) -> dict[str, Any]:
        claim, region = self.claim, self.claim.region
        text = {
            "format": FORMAT,
            "version": _version(claim, self.trees),
            "about": ARITHMETIC,
            "kind": claim.kind,
            "sha256": claim.sha256,
            "eps": region.eps.hex(),
            "norm": region.norm,
            "clip": None if region.clip is None else [_hex(end) for end in region.clip],
            "nodes": sorted(self.claims),
            "trees": [[list(t.parts), list(t.signs)] for t in self.trees],
        }
        if isinstance(claim.says, TopPixels):
            return text | {"class": claim.says.class_idx, "top": list(claim.says.top), "within": claim.says.within}
        return text | {"said": dict(claim.said)}

    def _arrays(self) -> dict[str, NDArray[Any]]:
        says = self.claim.says
        arrays: dict[str, NDArray[Any]] = {"image": self.claim.region.center}
        if not isinstance(says, TopPixels):
            arrays |= {f"statement/{name}": getattr(says, name) for name in STATEMENT_ARRAYS}
        if self.witness is not None:
            arrays["witness"] = self.witness
        for node, claims in self.claims.items():
            arrays |= {f"claims/{node}/{name}": getattr(claims, name) for name in CLAIM_ARRAYS}
        for number, proof in enumerate(self.trees):
            parts = {name: getattr(proof.tree, name) for name in TREE_ARRAYS}
            if proof.tree.clips is not None:
                parts |= {name: getattr(proof.tree.clips, name.removeprefix("clip_")) for name in CLIP_ARRAYS}
                parts["clip_goal"] = np.array([proof.tree.clips.goal])
            if proof.tree.descent is not None:
                parts |= {name: getattr(proof.tree.descent, name.removeprefix("row_")) for name in DESCENT_ARRAYS}
            arrays |= {f"trees/{number}/{name}": part for name, part in parts.items() if part is not None}
        return arrays

    def _repr_html_(self) -> str:
        """A table for a notebook: what it claims, and what its proof is made of. Whether it holds, a check says."""
        claim, region = self.claim, self.claim.region
        if isinstance(claim.says, TopPixels):
            what = f"each of {len(claim.says.top)} pixels stays among the {claim.says.within} brightest"
        else:
            what = ", ".join(f"{name}={value}" for name, value in claim.said.items() if value is not None)
        made = [f"{len(self.claims)} layers with bounds", f"{len(self.trees)} trees"]
        rows = {
            "question": f"eps={region.eps:.6g}, {what}",
            "norm": f"L-{region.norm}",
            "clip": "none" if region.clip is None else _box_in_words(region.clip),
            "network": f"SHA-256 {claim.sha256[:16]}...",
            "proof": "an image that breaks it" if self.witness is not None else ", ".join(made),
            "method": f"{FORMAT}, version {_version(claim, self.trees)}",
            "size": f"{len(self.to_bytes()) / 1e6:.2f} MB",
            "reason": "not checked here: co.check_certificate(path, model) proves it anew",
        }
        cells = "".join(
            f'<tr><th style="text-align:left">{html.escape(name)}</th>'
            f'<td style="text-align:left">{html.escape(value)}</td></tr>'
            for name, value in rows.items()
        )
        return f"<table><caption><b>certificate: {html.escape(claim.kind)}</b></caption>{cells}</table>"

    @classmethod
    def load(cls, path: str | Path) -> Certificate:
        """Reads a file. Raises CertificateError for one that is damaged or no certificate, OSError if there is none."""
        with Path(path).open("rb") as stream:
            return cls._read(stream)

    @classmethod
    def from_bytes(cls, content: bytes) -> Certificate:
        """Raises CertificateError."""
        return cls._read(io.BytesIO(content))

    @classmethod
    def _read(cls, stream: BinaryIO) -> Certificate:
        try:
            return _parsed(unpacked(stream))
        except CertificateError:
            raise
        except Exception as error:  # zip, zlib, json and numpy each have their own; a reader must survive all of them
            raise CertificateError(f"not a readable certificate ({type(error).__name__}: {error})") from error


STATEMENT_ARRAYS = {
    "heads": "<f8",
    "head": "<i8",
    "place": "<i8",
    "terms": "<i8",
    "coefs": "<f8",
    "members": "<i8",
    "need": "<i8",
    "anchors": "<i8",
}
CLAIM_ARRAYS = {"flat": "<i8", "lower": "<f8", "upper": "<f8"}
TREE_ARRAYS = {
    "node": "<i8",
    "flat": "<i8",
    "phases": "|i1",
    "slopes": "<f4",
    "mixes": "<f4",
    "pushes": "<f8",
    "inputs": "<i8",
    "shares": "<f4",
}
CLIP_ARRAYS = {"clip_goal": "<f8", "clip_slopes": "<f4", "clip_mixes": "<f4", "clip_shares": "<f8"}

DESCENT_ARRAYS = {"row_parents": "<i4", "row_counts": "<i4", "row_sides": "<i4", "row_shares": "<f4"}

MOST_CLIPS = 64
"""Most times that intervals of one tree are clipped: each takes as long as some thousands of leaves."""


def _parsed(parts: dict[str, bytes]) -> Certificate:
    text = json.loads(parts.pop(TEXT))
    version = text["version"]
    if text["format"] != FORMAT or version not in range(1, VERSION + 1) or isinstance(version, bool):
        said = f"{text['format']!r} version {version!r}"
        raise CertificateError(f"it is {said}; this reads {FORMAT!r} up to version {VERSION}")
    kind, norm, eps = text["kind"], text["norm"], float.fromhex(text["eps"])
    if kind not in ("certified", "falsified") or norm not in ("inf", "2", "1"):
        raise CertificateError(f"kind {kind!r}, norm {norm!r}")
    if not 0 <= eps < np.inf:
        raise CertificateError(f"eps {eps!r}")
    image = array(parts.pop("image.npy"), "<f8")
    _require(image.ndim == 3 and bool(np.isfinite(image).all()), "the image is no finite map")
    region = Region(image, eps, _norm(norm), _clip(text["clip"], len(image)))
    says: Statement | TopPixels
    if version >= 3:
        says = Statement(**{n: array(parts.pop(f"statement/{n}.npy"), t) for n, t in STATEMENT_ARRAYS.items()})
    else:
        says = TopPixels(_integer(text["class"]), tuple(_integer(p) for p in text["top"]), _integer(text["within"]))
    said = text.get("said", {})
    _require(isinstance(said, dict), "'said' is no JSON object")
    claim = Claim(kind, str(text["sha256"]), region, says, said)
    witness = array(parts.pop("witness.npy"), "<f8") if kind == "falsified" else None
    claims = {}
    for node in text["nodes"]:
        arrays = {name: array(parts.pop(f"claims/{_integer(node)}/{name}.npy"), t) for name, t in CLAIM_ARRAYS.items()}
        _require(all(part.shape == (arrays["flat"].size,) for part in arrays.values()), "claims of unlike lengths")
        claims[int(node)] = Claims(**arrays)
    trees = []
    for number, (about, signs) in enumerate(text["trees"]):
        signed = tuple(_integer(p) for p in about), tuple(_number(s) for s in signs)
        trees.append(PartTree(*signed, _tree(parts, number)))
    _require(not parts, "it holds parts that no certificate has")
    _require(version == _version(claim, trees), f"what it holds is not of version {version}")
    return Certificate(claim, claims, tuple(trees), witness)


def _version(claim: Claim, trees: Sequence[PartTree]) -> int:
    if isinstance(claim.says, Statement):
        if any(proof.tree.descent is not None for proof in trees):
            return 5
        return 3 if all(proof.tree.clips is None for proof in trees) else 4
    clip = claim.region.clip
    return 2 if clip is not None and isinstance(clip[0], tuple) else 1


def _box_in_words(box: tuple[Any, Any]) -> str:
    low, high = box
    if not isinstance(low, tuple):
        return f"[{low:g}, {high:g}]"
    shown = " x ".join(f"[{a:g}, {b:g}]" for a, b in zip(low[:4], high[:4], strict=True))
    return shown + (" x ..." if len(low) > 4 else "")


def _hex(end: float | tuple[float, ...]) -> str | list[str]:
    return [value.hex() for value in end] if isinstance(end, tuple) else end.hex()


def _clip(said: Any, channels: int) -> Clip:
    """A box. Raises CertificateError for a malformed one, or one of another number of channels."""
    if said is None:
        return None
    _require(isinstance(said, list) and len(said) == 2, "a box")
    if isinstance(said[0], str):
        low, high = (float.fromhex(end) for end in said)
        _require(-np.inf < low < high < np.inf, "a box")
        return low, high
    _require(all(isinstance(end, list) and len(end) == channels for end in said), "a box")
    lows, highs = (tuple(float.fromhex(value) for value in end) for end in said)
    _require(all(-np.inf < a < b < np.inf for a, b in zip(lows, highs, strict=True)), "a box")
    return lows, highs


def _tree(parts: dict[str, bytes], number: int) -> Tree:
    arrays: dict[str, Any] = {}
    for name, dtype in TREE_ARRAYS.items():
        content = parts.pop(f"trees/{number}/{name}.npy", None)
        if content is None:
            _require(name == "shares", f"tree {number} has no {name}")
            arrays[name] = None
        else:
            arrays[name] = array(content, dtype)
    units, leaves = arrays["node"].size, len(arrays["phases"])
    _require(arrays["node"].shape == arrays["flat"].shape == (units,) and arrays["inputs"].ndim == 1, "a tree's units")
    _require(
        all(arrays[n].shape == (leaves, units) for n in ("phases", "slopes", "mixes", "pushes")), "a tree's leaves"
    )
    _require(leaves == 1 or (leaves > 1 and units > 0), "a tree's leaves")  # over no units they take no bytes
    _require(not units or -1 <= arrays["phases"].min() <= arrays["phases"].max() <= 1, "a phase other than -1, 0 and 1")
    _require(not units or 0 <= arrays["mixes"].min() <= arrays["mixes"].max() <= 1, "a share of planes outside [0, 1]")
    if arrays["shares"] is not None:
        _require(arrays["shares"].shape == (units, arrays["inputs"].size + units), "a tree's planes")
    return Tree(**arrays, clips=_clips(parts, number, units), descent=_descent(parts, number, leaves, units))


def _clips(parts: dict[str, bytes], number: int, units: int) -> Clips | None:
    arrays = _all_or_none(parts, number, CLIP_ARRAYS)
    if not arrays:
        return None
    times = len(arrays["shares"])
    _require(0 < times <= MOST_CLIPS, f"{times} times of clipping")
    _require(arrays["goal"].shape == (1,) and bool(np.isfinite(arrays["goal"][0])), "a goal of clipping")
    _require(arrays["slopes"].shape == arrays["mixes"].shape == (times, units), "multipliers of clipping")
    _require(arrays["shares"].shape == (times, 2, units), "shares of clipping")
    _require(all(bool(np.isfinite(m).all()) for m in arrays.values()), "numbers of clipping that are not finite")
    return Clips(float(arrays.pop("goal")[0]), **arrays)


def _descent(parts: dict[str, bytes], number: int, rows: int, units: int) -> Descent | None:
    arrays = _all_or_none(parts, number, DESCENT_ARRAYS)
    if not arrays:
        return None
    parents, counts, sides, shares = (arrays[n] for n in ("parents", "counts", "sides", "shares"))
    _require(parents.shape == counts.shape == (rows,), "rows of a tree")
    _require(bool((counts >= 0).all()) and counts.max(initial=0) <= 2 * units, "how often a row clips")
    _require(sides.shape == shares.shape == (int(counts.sum(dtype=np.int64)),), "what rows clip")
    _require(bool((sides >= 0).all()) and sides.max(initial=-1) < 2 * units, "a unit that a row clips")
    _require(bool(((shares >= 0) & np.isfinite(shares)).all()), "shares of rows")
    return Descent(**arrays)


def _all_or_none(parts: dict[str, bytes], number: int, types: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    """Arrays of a tree that stand there together or not at all, named without what comes before "_"."""
    found = {name: parts.pop(f"trees/{number}/{name}.npy", None) for name in types}
    arrays = {n.split("_", 1)[1]: array(content, types[n]) for n, content in found.items() if content is not None}
    _require(len(arrays) in (0, len(types)), f"tree {number} is clipped in part")
    return arrays


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise CertificateError(f"malformed: {what}")


def _integer(value: object) -> int:
    _require(isinstance(value, int) and not isinstance(value, bool) and 0 <= abs(value) < 2**40, f"{value!r}")
    assert isinstance(value, int)
    return value


def _number(value: object) -> float:
    _require(isinstance(value, int | float) and not isinstance(value, bool), f"{value!r}")
    assert isinstance(value, int | float)
    return float(value)


def _norm(name: str) -> Norm:
    norms: dict[str, Norm] = {"inf": "inf", "2": "2", "1": "1"}
    return norms[name]
