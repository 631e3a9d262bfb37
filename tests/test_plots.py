"""The pictures show what the results hold: bar lengths, the line, outlined sets, marked pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from nets import Plain, image, seeded

import corgi_opt as co
from corgi_opt.cli.files import picture_file
from corgi_opt.plots import plot_cam, plot_counterexample

mpl.use("Agg")  # before pyplot: no display is needed
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection

K = 4


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def asked():
    """A network, an image and a counterexample."""
    x = image(1, 6, 6)
    net = co.from_torch(seeded(Plain, 2), x)
    witness = co.attack(net, x, eps=0.3, k=K)
    assert witness is not None
    return net, x, witness


def outlined(ax, shape: tuple[int, int]) -> set[int]:
    """The pixels that the white border runs around: left of each pixel, an odd number of upright edges."""
    (white,) = (
        c for c in ax.collections if isinstance(c, LineCollection) and (np.asarray(c.get_color())[0, :3] == 1).all()
    )
    edges = {tuple(np.round(s, 3).flatten()) for s in white.get_segments()}
    found = set()
    for y in range(shape[0]):
        inside = False
        for x in range(shape[1]):
            inside ^= (x - 0.5, y - 0.5, x - 0.5, y + 0.5) in edges
            if inside:
                found.add(y * shape[1] + x)
    return found


def marked(ax, label: str, width: int) -> set[int]:
    (line,) = (drawn for drawn in ax.lines if drawn.get_label() == label)
    return {int(y) * width + int(x) for x, y in zip(*line.get_data(), strict=True)}


def test_a_counterexample_is_drawn_with_both_sets_and_what_changed(asked):
    net, x, witness = asked
    figure = plot_counterexample(net, x, K, witness)
    first, change, second, before, after = figure.axes[:5]
    np.testing.assert_allclose(first.images[0].get_array(), x[0, 0].numpy(), atol=1e-6)
    np.testing.assert_allclose(second.images[0].get_array(), witness.image[0, 0].numpy())
    assert change.get_title() == "difference, 1x"  # of 0.3; twice as much would not fit
    grey = 0.5 + (witness.image - x.double())[0, 0].numpy()
    np.testing.assert_allclose(change.images[0].get_array(), grey, atol=1e-6)
    np.testing.assert_array_equal(after.images[0].get_array(), witness.cam.numpy())
    old = set(net.cam(x).flatten().topk(K).indices.tolist())
    new = set(witness.cam.flatten().topk(K).indices.tolist())
    shape = tuple(witness.cam.shape)
    assert outlined(before, shape) == old
    assert outlined(after, shape) == new
    assert marked(after, "came in", shape[1]) == new - old != set()
    assert marked(after, "pushed out", shape[1]) == old - new != set()


def test_titles_and_legend_are_inside_the_figure(asked):
    net, x, witness = asked
    figure = plot_counterexample(net, x, K, witness)
    figure.canvas.draw()
    for part in [*(ax.title for ax in figure.axes), *(ax.xaxis.label for ax in figure.axes), *figure.legends]:
        box = part.get_window_extent()
        if box.width > 0:
            assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_the_distance_of_a_counterexample_is_said_with_its_norm(asked, norm):
    net, x, _ = asked
    witness = co.attack(net, x, eps=3.0, k=K, norm=norm)
    assert witness is not None
    assert plot_counterexample(net, x, K, witness).get_suptitle().endswith(f"(L-{norm})")
    bare = replace(witness, original=None)
    assert plot_counterexample(net, x, K, bare).get_suptitle().endswith(f"{witness.distance:.4g}")


def test_without_a_clip_box_both_images_share_one_grey_scale(asked):
    net, x, _ = asked
    witness = co.attack(net, x, eps=0.3, k=K, clip=None)
    assert witness is not None
    figure = plot_counterexample(net, x, K, witness, clip=None)
    both = torch.cat([x.double(), witness.image])
    low, high = float(both.min()), float(both.max())
    for ax, shown in ((figure.axes[0], x.double()), (figure.axes[2], witness.image)):
        np.testing.assert_allclose(ax.images[0].get_array(), (shown[0, 0].numpy() - low) / (high - low), atol=1e-12)


def test_colour_images_are_drawn_in_colour():
    class Colour(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.body[0] = torch.nn.Conv2d(3, 2, 3, padding=1)

    x = image(3, 6, 6)
    net = co.from_torch(seeded(Colour, 2), x)
    witness = co.attack(net, x, eps=0.3, k=K)
    assert witness is not None
    figure = plot_counterexample(net, x, K, witness)
    assert [figure.axes[i].images[0].get_array().shape for i in range(3)] == [(6, 6, 3)] * 3


def test_the_picture_can_be_saved_in_a_new_folder(asked, tmp_path):
    net, x, witness = asked
    path = picture_file(tmp_path / "new" / "deep" / "picture.png")
    plot_counterexample(net, x, K, witness).savefig(path)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["picture", "picture.docx", "file/picture.png"])
def test_a_picture_that_cannot_be_saved_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(co.InputError, match=Path(name).name):
        picture_file(tmp_path / name)


def test_a_cam_is_drawn_over_its_image_with_the_class_in_the_title(asked):
    net, x, _ = asked
    named = co.from_torch(seeded(Plain, 2), x, classes=[f"sign {i}" for i in range(net.classes)])
    predicted = int(net.logits(x).argmax())
    ax = co.plot_cam(named, x)
    assert co.plot_cam is plot_cam and ax.get_title() == f"CAM of class {predicted} (sign {predicted})"
    assert ax.figure.axes[1].get_ylabel() == "CAM" and ax.images[0].get_array().shape == (6, 6, 3)
    low, high = ax.figure.axes[1].get_ylim()
    assert (low, high) == pytest.approx((float(net.cam(x).min()), float(net.cam(x).max())))
    assert co.plot_cam(net, x, 1).get_title() == "CAM of class 1" and co.plot_cam(named, x, "sign 1")
    _, mine = plt.subplots()
    assert co.plot_cam(net, x, ax=mine) is mine
    with pytest.raises(co.InputError, match="class_idx"):
        co.plot_cam(net, x, 99)


def test_an_image_outside_0_and_1_is_drawn_in_its_own_range(asked):
    net, x, _ = asked
    wide = 4 * x - 2
    shown = co.plot_cam(net, wide).images[0].get_array()
    assert float(np.asarray(shown).max()) <= 1 and len(np.unique(np.asarray(shown)[..., 0].round(6))) > 6
