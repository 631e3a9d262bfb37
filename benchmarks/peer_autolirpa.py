"""CROWN bounds of a CAM by the peer library auto_LiRPA, beside which our own bounds are timed.

    python benchmarks/peer_autolirpa.py --root DIR [--eps 1e-3] [--runs 3]

DIR as for examples/reproduce_paper.py. auto_LiRPA is no dependency of this project; :func:`available` says how to
install it. Prints, for every form of the paper's network that it can be given, the time of its bounds and their width.

Its patches mode keeps allocating large tensors, and page faults take half of its time. THP_MEM_ALLOC_ENABLE=1 in the
environment (torch then asks Linux for huge pages) avoids most of them; our own bounds gain nothing from it.

Importing auto_LiRPA changes the process: it raises the recursion limit, gives the root logger a handler and switches
the profiling executor of torch.jit off. Its warning filters are undone here.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import platform
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from corgi_opt.data import gtsrb

# Its declared dependencies pin torch below 2.9 and hold test tools, hence --no-deps. The release on the package
# index does not install beside current torch at all.
INSTALL = (
    "pip install --no-deps git+https://github.com/Verified-Intelligence/auto_LiRPA && "
    "pip install appdirs graphviz packaging tqdm"
)

Clip = tuple[float, float] | None


def available() -> str | None:
    """None when auto_LiRPA can be imported, else why not and how to install it."""
    try:
        _auto_lirpa()
    except Exception as error:  # a release too old for this torch fails in its own ways
        return f"auto_LiRPA is not importable ({type(error).__name__}: {error}); {INSTALL}"
    return None


def _auto_lirpa() -> Any:
    # It puts filters of its own before any set here, and torch deprecates what it uses: recording alone is silent.
    with warnings.catch_warnings(record=True):
        return importlib.import_module("auto_LiRPA")


def cam_model(features: nn.Module, weight: Tensor) -> nn.Sequential:
    """A copy of ``features`` and the CAM (N, H*W), row by row, of the class with weights ``weight`` (C,).

    Float32, on the CPU. Dropout becomes the identity: auto_LiRPA runs it in training mode while it reads a model.
    """
    maps = copy.deepcopy(features)
    for module in list(maps.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout | nn.Dropout2d):
                setattr(module, name, nn.Identity())
    head = _fixed_conv(weight.detach()[None, :, None, None])
    return nn.Sequential(maps, head, nn.Flatten()).to("cpu", torch.float32).eval()


def pool_before_relu(features: nn.Module) -> nn.Sequential:
    """``maxpool(relu(x)) = relu(maxpool(x))``: the layers of an nn.Sequential with every max pool before its ReLU.

    Like :func:`cam_model`, for eval mode: dropout is left out. So is a ReLU right after a ReLU. The layers are shared
    with ``features``.
    """
    layers: list[nn.Module] = []
    for layer in _flat(features):
        after_relu = bool(layers) and isinstance(layers[-1], nn.ReLU)
        if isinstance(layer, nn.Dropout | nn.Dropout2d) or (isinstance(layer, nn.ReLU) and after_relu):
            continue
        layers.insert(len(layers) - 1 if isinstance(layer, nn.MaxPool2d) and after_relu else len(layers), layer)
    return nn.Sequential(*layers)


def difference_pool(features: nn.Module) -> nn.Sequential:
    """:func:`pool_before_relu`, with every MaxPool2d(2, 2) written as ``max(a, b) = a + relu(b - a)``.

    Raises ValueError for a max pool that is not 2x2 with stride 2 and no padding, one inside a module that is no
    nn.Sequential, or one before the first convolution.
    """
    layers: list[nn.Module] = []
    channels: int | None = None
    for layer in pool_before_relu(features):
        if isinstance(layer, nn.MaxPool2d):
            if channels is None or not _halves(layer):
                raise ValueError(f"only a MaxPool2d(2, 2) after a convolution can be rewritten, not {layer}")
            layers.append(_DifferencePool(channels))
            continue
        if any(isinstance(module, nn.MaxPool2d) for module in layer.modules()):
            raise ValueError(f"there is a max pool inside {type(layer).__name__}, which is no nn.Sequential")
        convs = [module for module in layer.modules() if isinstance(module, nn.Conv2d)]
        channels = convs[-1].out_channels if convs else channels
        layers.append(layer)
    dtype = next(features.parameters()).dtype
    return nn.Sequential(*layers).to(dtype)


def _flat(module: nn.Module) -> list[nn.Module]:
    if not isinstance(module, nn.Sequential):
        return [module]
    return [layer for child in module for layer in _flat(child)]


def _halves(pool: nn.MaxPool2d) -> bool:
    wanted = {"kernel_size": 2, "stride": 2, "padding": 0, "dilation": 1}
    same = all(getattr(pool, name) in (value, (value, value)) for name, value in wanted.items())
    return same and not pool.ceil_mode


class _DifferencePool(nn.Module):
    """MaxPool2d(2, 2) as two rounds of ``max(a, b) = a + relu(b - a)``: over the columns, then over the rows.

    Both rounds run at the pooled size, the two rows of a window being channels 2c and 2c + 1 in between, and
    selections are dense: for its fast patches mode auto_LiRPA needs equal strides along both axes and one group.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        c = torch.arange(channels)
        left, right = torch.zeros(2, 2 * channels, channels, 2, 2)
        top, bottom = torch.zeros(2, channels, 2 * channels, 1, 1)
        for row in (0, 1):
            left[2 * c + row, c, row, 0] = 1.0
            right[2 * c + row, c, row, 1] = 1.0
        top[c, 2 * c] = 1.0
        bottom[c, 2 * c + 1] = 1.0
        self.left, self.right_minus_left = _fixed_conv(left), _fixed_conv(right - left)
        self.top, self.bottom_minus_top = _fixed_conv(top), _fixed_conv(bottom - top)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.left(x) + torch.relu(self.right_minus_left(x))
        out: Tensor = self.top(rows) + torch.relu(self.bottom_minus_top(rows))
        return out


def _fixed_conv(weight: Tensor) -> nn.Conv2d:
    """The convolution without bias whose stride is its kernel size."""
    c_out, c_in, *kernel = weight.shape
    size = (kernel[0], kernel[1])
    # Made on the meta device, a module draws no random initial weights.
    conv = nn.Conv2d(c_in, c_out, size, stride=size, bias=False, device="meta")
    conv.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return conv


def build(model: nn.Module, x: Tensor, *, sparse: bool, conv_mode: str = "patches") -> Any:
    """auto_LiRPA's BoundedModule of a copy of ``model``, for images of x's shape (1, C, H, W).

    ``sparse`` bounds only those ReLU inputs by CROWN that intervals leave unstable. ``conv_mode`` "patches" is the
    fast one; "matrix" needs gigabytes without ``sparse``. Patches mode without ``sparse`` fails on MaxPool2d, in
    :func:`crown_bounds`.
    """
    # By default a layer with more than 90 % unstable neurons is bounded as without `sparse`. That gains nothing, and
    # MaxPool2d would then fail.
    options = {"conv_mode": conv_mode, "sparse_intermediate_bounds": sparse, "minimum_sparsity": 1.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _auto_lirpa().BoundedModule(copy.deepcopy(model).float().eval(), x.float(), bound_opts=options)


def crown_bounds(bounded: Any, x: Tensor, eps: float, clip: Clip) -> tuple[Tensor, Tensor]:
    """CROWN bounds of a :func:`build` over the ball of radius eps around x, intersected with the clip box.

    All ReLU inputs are bounded anew, by CROWN as well. Float32, shaped like the output of the model. Raises
    RuntimeError for what auto_LiRPA cannot do, such as MaxPool2d on a map with one odd side.
    """
    library = _auto_lirpa()
    lower, upper = _box(x, eps, clip)
    ball = library.PerturbationLpNorm(norm=float("inf"), eps=eps, x_L=lower.float(), x_U=upper.float())
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        low, high = bounded.compute_bounds(x=(library.BoundedTensor(x.float(), ball),), method="CROWN")
    return low, high


def crown_cam_bounds(
    model: nn.Module, x: Tensor, eps: float, clip: Clip, *, sparse: bool, conv_mode: str = "patches"
) -> tuple[Tensor, Tensor]:
    """:func:`build` and :func:`crown_bounds` in one: bounds (1, H*W) of a :func:`cam_model`."""
    return crown_bounds(build(model, x, sparse=sparse, conv_mode=conv_mode), x, eps, clip)


def _box(x: Tensor, eps: float, clip: Clip) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of every input, in float64 and shaped like x."""
    lower, upper = x.double() - eps, x.double() + eps
    return (lower, upper) if clip is None else (lower.clamp(*clip), upper.clamp(*clip))


def _check_same(model: nn.Module, other: nn.Module, x: Tensor) -> None:
    """Raises AssertionError when two models differ in float64, on x or on noise, by more than rounding."""
    images = torch.cat([x.double(), torch.rand(8, *x.shape[1:], dtype=torch.float64)])
    with torch.no_grad():
        ours, theirs = (copy.deepcopy(m).double().eval()(images) for m in (model, other))
    gap = float((ours - theirs).abs().max())
    if not gap <= 1e-10:
        raise AssertionError(f"the rewritten model differs from the original by {gap:.3g}")


def _inside(model: nn.Module, x: Tensor, eps: float, clip: Clip, low: Tensor, high: Tensor) -> bool:
    """Whether the CAMs of 256 sampled images, half of them corners of the box, respect the bounds."""
    lower, upper = _box(x, eps, clip)
    share = torch.rand(256, *x.shape[1:], dtype=torch.float64)
    share[::2] = share[::2].round()
    with torch.no_grad():
        cams = copy.deepcopy(model).double()(lower + share * (upper - lower))
    slack = 1e-5 * float(cams.abs().max())  # float32 bounds
    return bool(((cams >= low - slack) & (cams <= high + slack)).all())


def _line(model: nn.Module, x: Tensor, eps: float, sparse: bool, runs: int) -> str:
    """What one form of the network costs and gives; the first run is not counted."""
    clip = (0.0, 1.0)
    start = time.perf_counter()
    bounded = build(model, x, sparse=sparse)
    built = time.perf_counter() - start
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        try:
            low, high = crown_bounds(bounded, x, eps, clip)
        except RuntimeError as error:
            return f"fails in auto_LiRPA: {str(error).splitlines()[0]}"
        times.append(time.perf_counter() - start)
    times = times[1:]
    verdict = "inside" if _inside(model, x, eps, clip, low, high) else "OUTSIDE"
    return (
        f"build {built:.2f} s, bounds {statistics.median(times):.2f} s ({min(times):.2f} .. {max(times):.2f}), "
        f"mean width {float((high - low).mean()):.4f}, sampled CAMs {verdict}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="auto_LiRPA's CROWN bounds of the CAM on the paper's network.")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--eps", type=float, default=1e-3)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    missing = available()
    if missing:
        parser.exit(1, f"{missing}\n")

    paper = gtsrb.load_paper_image_496(args.root)
    x = gtsrb.load_split(args.root, "train").find(paper.image).image()
    network = gtsrb.load_paper_model(args.root / paper.model)
    features, linear = network[:-3], network[-1]  # what follows the features: global average, flatten, linear
    assert isinstance(linear, nn.Linear)
    forms = {
        "MaxPool2d": features,
        "MaxPool2d before ReLU": pool_before_relu(features),
        "differences": difference_pool(features),
    }
    version = getattr(_auto_lirpa(), "__version__", "of unknown version")
    print(
        f"{platform.machine()}, torch {torch.__version__} with {torch.get_num_threads()} threads, "
        f"auto_LiRPA {version}; image 496, class {paper.class_idx}, eps {args.eps:g}, clip [0, 1], float32; "
        f"median (min .. max) of {args.runs}"
    )
    for name, form in forms.items():
        _check_same(features, form, x)
        model = cam_model(form, linear.weight[paper.class_idx])
        for sparse in (True, False):
            print(f"{name:>21}, sparse {'on' if sparse else 'off':<3}  {_line(model, x, args.eps, sparse, args.runs)}")


if __name__ == "__main__":
    main()
