"""The image that an answer is about, with what a picture of it needs: answers hold no network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from corgi_opt._ambient import pinned
from corgi_opt.drawing.maps import Shown
from corgi_opt.drawing.panels import Scale
from corgi_opt.network.names import in_words
from corgi_opt.problem.clip import Box, as_tensors, checked_clip
from corgi_opt.problem.plain import Plain, tensor
from corgi_opt.problem.properties import Property
from corgi_opt.problem.region import Norm, canonical_norm
from corgi_opt.problem.scene import Scene


@dataclass(frozen=True, eq=False)
class Original(Plain):
    """``image`` (1, C, H, W) float64, ``cam`` (H, W) of ``class_idx`` there, by the user's own model; ``outlined``: how
    many of its brightest pixels are to stay among how many, None where the property is not about such a set; ``norm``
    and ``clip`` of the region."""

    image: Tensor
    cam: Tensor
    class_idx: int
    class_name: str | None
    outlined: tuple[int, int] | None
    norm: Norm
    clip: Box | None

    @classmethod
    def of(cls, scene: Scene, property: Property) -> Original:
        """With tensors of its own: whoever writes to those of an answer changes no question."""
        about = scene.class_idx, scene.class_name, property.outlined
        return cls(scene.x.clone(), scene.cam.clone(), *about, scene.norm, scene.clip)

    @classmethod
    @pinned
    def from_dict(cls, said: Mapping[str, Any]) -> Original:
        """What :meth:`to_dict` wrote."""
        outlined = said["outlined"]
        return cls(
            **{
                **said,
                "image": tensor(said["image"]),
                "cam": tensor(said["cam"]),
                "outlined": None if outlined is None else (int(outlined[0]), int(outlined[1])),
                "norm": canonical_norm(said["norm"]),
                "clip": checked_clip(said["clip"]),
            }
        )

    @property
    def class_in_words(self) -> str:
        """``7``, or ``7 (stop)`` where the name is known."""
        return in_words(self.class_idx, self.class_name)

    def shown(self) -> Shown:
        """The image and its map, for a picture; outlined are the brightest pixels that the property is about."""
        return shown(self.image, self.cam, None if self.outlined is None else self.outlined[0])

    def shown_then(self, image: Tensor, cam: Tensor) -> Shown:
        """Another image and its map; outlined are those among which the brightest pixels were to stay."""
        return shown(image, cam, None if self.outlined is None else self.outlined[1])

    def scale(self, *others: Tensor) -> Scale:
        """The scale of pictures of this image and others."""
        return scale_of(self.clip, self.image, *others)


def shown(image: Tensor, cam: Tensor, k: int | None) -> Shown:
    """An image (1, C, H, W) and its map (H, W) for a picture, with the k brightest pixels outlined."""
    order = [] if k is None else cam.flatten().argsort(descending=True, stable=True)[:k].tolist()
    return Shown(image[0].detach().cpu().numpy(), cam.detach().cpu().numpy(), order)


def scale_of(clip: Box | None, *images: Tensor) -> Scale:
    """One scale for all images: the clip box, or what they hold where there is none."""
    if clip is None:
        return Scale.of([image.detach().cpu().numpy() for image in images])
    low, high = (end.flatten().numpy() for end in as_tensors(clip))
    return Scale(low, high)
