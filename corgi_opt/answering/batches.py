"""Several images, or several classes, in one call: a list of answers, each as it would be alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from corgi_opt.errors import InputError, Interrupted, TieError

F = TypeVar("F", bound=Callable[..., Any])


def over_images(tied: Callable[..., Any] | None = None) -> Callable[[F], F]:
    """Lets a public function take x (N, C, H, W) or a list of images (1, C, H, W), and a list of classes: it returns a
    list of answers then. Limits are those of one image each.

    ``tied``: the answer about an image of several at which the property is not defined, from the same arguments and the
    ``reason``; None: TieError is raised. Ctrl-C raises Interrupted with the list so far.
    """

    def wrap(function: F) -> F:
        @functools.wraps(function)
        def each(net: Any, x: Any, *, class_idx: Any = None, **given: Any) -> Any:
            images, classes = images_of(x), _classes_of(class_idx)
            if len(images) == 1 and not isinstance(x, (list, tuple)) and classes is None:
                return function(net, x, class_idx=class_idx, **given)
            answers: list[Any] = []
            for image, one in _paired(images, [class_idx] if classes is None else classes):
                try:
                    answers.append(function(net, image, class_idx=one, **given))
                except TieError as tie:
                    if tied is None:
                        raise
                    answers.append(tied(net, image, class_idx=one, reason=str(tie), **given))
                except Interrupted as stop:
                    raise Interrupted([*answers, stop.partial]) from stop
                except KeyboardInterrupt as stop:
                    raise Interrupted(answers) from stop
            return answers

        return cast(F, each)

    return wrap


def images_of(x: Any) -> list[Any]:
    """A batch or a list image by image; what is no batch of several is left for others to judge."""
    if isinstance(x, (list, tuple)):
        if not x:
            raise InputError("x must be one image or several, got an empty list")
        return list(x)
    several = isinstance(x, Tensor) and x.layout == torch.strided and x.ndim == 4 and len(x) > 1
    return [x[at : at + 1] for at in range(len(x))] if several else [x]


def _classes_of(class_idx: Any) -> list[Any] | None:
    """Classes one by one; None where there is one, or the predicted one."""
    if isinstance(class_idx, Tensor) and class_idx.ndim == 1 and not class_idx.is_floating_point():
        class_idx = class_idx.tolist()
    if not isinstance(class_idx, Sequence) or isinstance(class_idx, (str, bytes)):
        return None
    if not class_idx:
        raise InputError("class_idx must be one class or several, got an empty list")
    return list(class_idx)


def _paired(images: list[Any], classes: list[Any]) -> list[tuple[Any, Any]]:
    """Each image with its class; one image with every class, or one class for every image."""
    if len(images) == 1:
        return [(images[0], one) for one in classes]
    if len(classes) == 1:
        return [(image, classes[0]) for image in images]
    if len(images) != len(classes):
        raise InputError(f"there are {len(images)} images and {len(classes)} classes; give one class for each image")
    return list(zip(images, classes, strict=True))
