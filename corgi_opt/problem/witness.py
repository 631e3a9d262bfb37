"""A counterexample: the image, what changed there, and how it is shown beside the image that it is one to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from corgi_opt._ambient import pinned
from corgi_opt.drawing.inline import beside
from corgi_opt.drawing.maps import draw_counterexample, draw_small, over_the_image
from corgi_opt.drawing.tables import html_table
from corgi_opt.errors import InputError
from corgi_opt.problem.clip import intervals_in_words
from corgi_opt.problem.original import Original
from corgi_opt.problem.plain import Plain, tensor

REPLAYED = "replayed in float64 through the model"
"""What a counterexample rests on."""

SMALL = (1.35, 1.55)
"""Width of a panel and height, in inches, of the picture beside a table."""


@dataclass(frozen=True, eq=False)
class Witness(Plain):
    """A counterexample image inside the region, replayed in float64 through the user's own torch model.

    ``image`` (1, C, H, W) float64, ``cam`` (H, W) there; ``pair``: what changed places (flat pixel indices, of a CAM;
    classes, of logits): the first was ahead of the second, and is by ``margin <= 0`` now (an exact tie breaks a strict
    order); ``distance`` to the centre in the question's norm; ``what_changed``: the same in words. ``original``: the
    image that it is a counterexample to, with what pictures need; None where it was read from JSON that lacks it.
    """

    image: Tensor
    cam: Tensor
    pair: tuple[int, int]
    margin: float
    distance: float
    what_changed: str
    original: Original | None = None

    @property
    def center(self) -> Tensor | None:
        """The image (1, C, H, W) that it is a counterexample to."""
        return None if self.original is None else self.original.image

    @property
    def cam_before(self) -> Tensor | None:
        """The CAM (H, W) of that image."""
        return None if self.original is None else self.original.cam

    @classmethod
    @pinned
    def from_dict(cls, said: Mapping[str, Any]) -> Witness:
        """What :meth:`to_dict` wrote, now or before it held the original image."""
        tensors = {name: tensor(said[name]) for name in ("image", "cam")}
        return cls(**{**said, **tensors, "pair": tuple(said["pair"]), "original": original_of(said)})

    def plot(self, figure: Any = None) -> Any:
        """The image, what is added to it (magnified; it says how many times), the counterexample, and both maps over
        their images with the top-k set outlined; returns the matplotlib Figure.

        In the last panel a plus marks the pixels that came in, a cross those that were pushed out. ``figure``: an empty
        Figure or SubFigure to draw into (``layout="constrained"`` suits it); where it is narrow, the panels stand in
        two or three rows. Maps are stretched over the whole image, as is usual, which is not exactly what their pixels
        see. Raises InputError where the original image is not known.
        """
        if self.original is None:
            raise InputError(
                "this counterexample was read from JSON that lacks the image it is one to; "
                "corgi_opt.plots.plot_counterexample(net, x, k, witness) takes the image"
            )
        return draw_counterexample(
            self.original.shown(),
            self.original.shown_then(self.image, self.cam),
            title=f"{self.what_changed}, at distance {self.distance:.4g} (L-{self.original.norm})",
            cam=f"CAM of class {self.original.class_in_words}",
            scale=self.original.scale(self.image),
            map_panel=over_the_image,
            figure=figure,
        )

    def _repr_html_(self) -> str:
        about = self.original
        rows = {
            "what changed": self.what_changed,
            "margin": self.margin,
            "distance": self.distance,
            "norm": None if about is None else f"L-{about.norm}",
            "clip": None if about is None else "none" if about.clip is None else intervals_in_words(about.clip),
            "class of the CAM": None if about is None else about.class_in_words,
            "proof": REPLAYED,
        }
        return pictured(html_table("counterexample", rows), about, self)

    def __repr__(self) -> str:
        return f"Witness(margin={self.margin:.6g}, {self.what_changed}, distance={self.distance:.6g})"


def original_of(said: Mapping[str, Any]) -> Original | None:
    """The original image in what was read from JSON, if it is there."""
    found = said.get("original")
    return None if found is None else Original.from_dict(found)


def pictured(table: str, original: Original | None, witness: Witness | None) -> str:
    """A table in HTML with its small picture: the image and its map, and what a counterexample changes. Never raises;
    without an original there is no picture."""
    if original is None:
        return table

    def draw(figure: Any) -> None:
        others = () if witness is None else (witness.image,)
        after = None if witness is None else original.shown_then(witness.image, witness.cam)
        draw_small(figure, original.shown(), after, original.scale(*others))

    panels, alt = 2, "the image, and its CAM with the top-k set outlined"
    if witness is not None:
        panels, alt = 4, f"{alt}; the difference to the counterexample, and the CAM there"
    return beside(table, draw, (SMALL[0] * panels, SMALL[1]), alt)
