"""What is true of a fuzzed case, by other means than the package's: hooks on the model, autograd, plain arithmetic.

Nothing here imports the package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from fuzz_nets import Case, FuzzNet, logits_of, plain_copy
from torch import Tensor, nn

PERTURBED = 1e-10
"""Relative change of weights and inputs from which the size of the sums behind a CAM value is measured."""


class Oracle:
    """A float64 copy of the model (made before anybody else sees it), its CAMs by a forward hook on its body.

    ``weight`` (classes, C): the gradient of each logit with respect to the last feature map, times the pixels.
    ``has_cam``: whether that is the same at every position and image, and logits are those of the mean CAM plus a bias;
    None where the logits' own rounding does not let us tell.
    """

    def __init__(self, case: Case) -> None:
        self.model = plain_copy(case.model)
        self.x = case.x.detach().double().clone(memory_format=torch.contiguous_format)
        self._generator = torch.Generator().manual_seed(case.seed)
        self.weight, self.has_cam = self._head()
        self.classes = len(self.weight)

    def run(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The last feature maps (N, C, H, W) and logits (N, classes) of images (N, C, H, W), differentiable."""
        seen: list[Tensor] = []

        def keep(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            seen.append(output.clone())
            return seen[-1].clone()  # whatever the head writes into is not what was seen

        hook = self.model.body.register_forward_hook(keep)
        try:
            logits = logits_of(self.model(images.clone()))
        finally:
            hook.remove()
        return seen[-1], logits

    def cams(self, images: Tensor, class_idx: int) -> Tensor:
        """CAMs (N, H*W) of images (N, C, H, W), differentiable."""
        return torch.einsum("c,nchw->nhw", self.weight[class_idx], self.run(images)[0]).flatten(1)

    def cam(self, image: Tensor, class_idx: int) -> Tensor:
        with torch.no_grad():
            return self.cams(image, class_idx)[0]

    def logits(self, image: Tensor) -> Tensor:
        with torch.no_grad():
            return self.run(image)[1][0]

    def size(self, image: Tensor, class_idx: int) -> float:
        """How large the numbers are that the CAM of an image is the sum of.

        The larger of ``sum_c |W_c A_c|`` and of what a relative change of all weights and inputs moves it by, over
        that change: rounding errors are about 1e-16 of it.
        """
        with torch.no_grad():
            features = self.run(image)[0][0]
            found = float((self.weight[class_idx].abs()[:, None, None] * features.abs()).sum(0).max())
            cam = self.cam(image, class_idx)
            for seed, moved in enumerate(self._perturbed):
                other = moved.cam(image * (1 + PERTURBED * _signs(image, seed)), class_idx)
                found = max(found, float((other - cam).abs().max()) / PERTURBED)
        return found

    @cached_property
    def _perturbed(self) -> list[Oracle]:
        found = []
        for seed in range(3):
            other = object.__new__(Oracle)
            other.model, other.weight = plain_copy(self.model), self.weight
            for at, tensor in enumerate((*other.model.body.parameters(), *other.model.body.buffers())):
                if tensor.is_floating_point():
                    tensor.mul_(1 + PERTURBED * _signs(tensor, 100 * seed + at))
            found.append(other)
        return found

    def _head(self) -> tuple[Tensor, bool | None]:
        same, weight, first = True, torch.zeros(0), None
        for step in range(3):
            image = self.x.clone() + (0.3 * step) * float(self.x.abs().max() or 1.0) * _signs(self.x, step)
            with torch.enable_grad():
                features, logits = self.run(image.requires_grad_(True))
                rows = [torch.autograd.grad(z, features, retain_graph=True)[0][0] for z in logits[0]]
            slopes = torch.stack(rows) * features[0, 0].numel()  # (classes, C, H, W)
            features, logits = features.detach(), logits.detach()
            mean = slopes.mean((2, 3))
            weight = mean if step == 0 else weight
            size = float(weight.abs().max())
            same &= bool((slopes - weight[:, :, None, None]).abs().max() <= 1e-9 * size)
            shift = logits[0] - torch.einsum("kc,chw->k", weight, features[0]) / features[0, 0].numel()
            terms = float((weight.abs() @ features[0].abs().mean((1, 2))).max()) + float(logits.abs().max())
            if first is None:
                first, before = shift, terms
            same &= bool((shift - first).abs().max() <= 1e-9 * (terms + before))
        return weight.detach(), same


def _signs(like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randint(0, 2, like.shape, generator=generator) - 1).to(like.dtype)


@dataclass(frozen=True, eq=False)
class Region:
    """``||x - center|| <= eps`` and the box, by this file's own arithmetic. ``low``, ``high`` (1, C, H, W)."""

    center: Tensor
    eps: float
    norm: str
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, center: Tensor, eps: float, norm: object, box: tuple[Any, Any] | None) -> Region:
        """``box``: two numbers or tensors that broadcast to the image."""
        low, high = (-math.inf, math.inf) if box is None else box
        ends = [torch.as_tensor(end, dtype=torch.float64).expand(center.shape) for end in (low, high)]
        return cls(center, float(eps), str(norm), *ends)

    def distance(self, image: Tensor) -> float:
        moved = [abs(v) for v in (image - self.center).flatten().tolist()]
        if self.norm == "inf":
            return max(moved)
        largest = max(moved)
        if self.norm == "1" or largest == 0.0:
            return math.fsum(moved)
        return largest * math.sqrt(math.fsum((v / largest) ** 2 for v in moved))

    def holds(self, image: Tensor, slack: float = 0.0) -> bool:
        """``slack``: relative, on the distance alone (how two correct sums of squares may differ)."""
        in_box = bool(((image >= self.low) & (image <= self.high)).all())
        return in_box and self.distance(image) <= self.eps * (1 + slack)


@dataclass(frozen=True, eq=False)
class Asked:
    """The question: the ``top`` (k,) pixels at the image, each to stay among the ``within`` brightest.

    ``keeps``: the class that an image must be given to count; None: any.
    """

    class_idx: int
    top: Tensor
    within: int
    keeps: int | None

    def margins(self, cams: Tensor) -> Tensor:
        """(N,) of CAMs (N, P); <= 0: broken."""
        k, pixels = len(self.top), cams.shape[1]
        if self.within == k:
            rest = torch.ones(pixels, dtype=torch.bool)
            rest[self.top] = False
            return cams[:, self.top].amin(1) - cams[:, rest].amax(1)
        return torch.stack([self.place(cams, int(i)) for i in self.top]).amin(0)

    def place(self, cams: Tensor, i: int) -> Tensor:
        """CAM_i less the ``within``-th largest of the others (N,)."""
        others = torch.cat([cams[:, :i], cams[:, i + 1 :]], dim=1)
        return cams[:, i] - others.sort(dim=1, descending=True).values[:, self.within - 1]

    def objectives(self, pixels: int) -> list[tuple[int, int | None]]:
        """What an attack may minimise: pairs, or (with ``within``) a top pixel's place."""
        inside = [int(i) for i in self.top]
        if self.within == len(inside):
            return [(i, j) for i in inside for j in range(pixels) if j not in inside]
        return [(i, None) for i in inside]

    def value(self, cams: Tensor, objective: tuple[int, int | None]) -> Tensor:
        i, j = objective
        return self.place(cams, i) if j is None else cams[:, i] - cams[:, j]


def state_of(model: FuzzNet, *tensors: object) -> dict[str, object]:
    """All that a caller could notice of a model and of tensors: to be equal before and after."""
    seen: dict[str, object] = {
        "torch's modes": (torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "random state": bytes(torch.get_rng_state().tolist()),
    }
    for name, module in model.named_modules():
        hooks = [len(v) for key, v in vars(module).items() if key.endswith("_hooks") and v is not None]
        lists = {key: len(v) for key, v in vars(module).items() if isinstance(v, list)}
        seen[f"{name or 'model'}: attributes"] = (sorted(vars(module)), hooks, lists, module.training)
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            seen[f"{name}.{key}"] = _tensor(tensor)
    for at, tensor in enumerate(tensors):
        seen[f"tensor {at}"] = _tensor(tensor)
    return seen


def _tensor(t: object) -> object:
    if not isinstance(t, Tensor):
        return t
    content = t.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    how = (t.data_ptr(), t.dtype, t.shape, t.stride(), t.requires_grad, t.grad is None, t._version)
    return type(t), how, content
