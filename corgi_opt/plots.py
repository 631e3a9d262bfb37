"""Pictures of an image that need its network: a CAM over it, and a counterexample whose original image is at hand."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from corgi_opt._ambient import pinned
from corgi_opt.drawing.maps import as_it_is, draw_counterexample, draw_overlay
from corgi_opt.network.cam import CamNetwork
from corgi_opt.network.names import in_words, name_of
from corgi_opt.problem.clip import Clip
from corgi_opt.problem.original import scale_of, shown
from corgi_opt.problem.scene import Scene
from corgi_opt.problem.witness import Witness


@pinned
def plot_cam(net: CamNetwork, x: Tensor, class_idx: int | str | None = None, ax: Any = None) -> Any:
    """The class activation map over its image, stretched bilinearly, with a colour bar. Returns the matplotlib Axes.

    x (1, C, H, W); ``class_idx``: a class by number or name, None: the predicted one. ``ax``: matplotlib Axes to draw
    into. The map is stretched over the whole image, as is usual, which is not exactly what its pixels see. Images
    between 0 and 1 are drawn in that range, others in their own. Raises InputError for a bad image or class.
    """
    image = net.image(x)
    chosen = net.class_index(image, class_idx)
    within = bool(((image >= 0) & (image <= 1)).all())
    title = f"CAM of class {in_words(chosen, name_of(chosen, net.class_names))}"
    scale = scale_of((0.0, 1.0) if within else None, image)
    return draw_overlay(shown(image, net.cams(image, chosen)[0], None), title=title, label="CAM", scale=scale, ax=ax)


@pinned
def plot_counterexample(
    net: CamNetwork,
    x: Tensor,
    k: int,
    witness: Witness,
    *,
    class_idx: int | str | None = None,
    clip: Clip = (0.0, 1.0),
    figure: Any = None,
) -> Any:
    """Image + difference = counterexample, then both CAMs, pixel by pixel, with their top-k sets outlined.

    ``witness.plot()`` draws the same with the maps over their images, and knows image, k, class and clip itself.
    ``figure``: an empty matplotlib Figure or SubFigure to draw into. Returns the Figure. In the last panel a plus marks
    the pixels that came in, a cross those that were pushed out. Raises InputError for a bad image, class or clip.
    """
    scene = Scene.of(net, x, class_idx=class_idx, norm="inf", clip=clip)
    norm = "" if witness.original is None else f" (L-{witness.original.norm})"
    return draw_counterexample(
        shown(scene.x, scene.cam, k),
        shown(witness.image, witness.cam, k),
        title=f"{witness.what_changed}, at distance {witness.distance:.4g}{norm}",
        cam=f"CAM of class {scene.class_in_words}",
        scale=scale_of(scene.clip, scene.x, witness.image),
        map_panel=as_it_is,
        figure=figure,
    )
