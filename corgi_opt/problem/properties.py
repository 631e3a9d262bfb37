"""What must hold at every image of a region: the k brightest pixels of a CAM stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from corgi_opt._ambient import pinned, pinned_with_grad
from corgi_opt._checks import integer, not_negative
from corgi_opt.errors import InputError, TieError


@dataclass(frozen=True, eq=False)
class TopK:
    """The k brightest pixels of a CAM (H, W), as flat indices, and what may not happen to them.

    ``top`` (k,) is sorted from the brightest, ``rest`` (P-k,) likewise. Each top pixel has to stay among the ``within``
    brightest: of its ``rivals`` (R,) at most ``allowed`` may become as bright as it is. With ``within = k``, the set
    itself has to stay: rivals are the rest, and none is allowed. Otherwise rivals are all pixels, itself left out.
    ``ahead`` (k, R): rivals that are as bright from the start.
    """

    k: int
    within: int
    top: Tensor
    rest: Tensor
    rivals: Tensor
    ahead: Tensor
    gap: float

    @classmethod
    @pinned
    def of(cls, cam: Tensor, k: int, tie_tol: float = 0.0, within: int | None = None) -> TopK:
        """Raises InputError when k or within is out of range, TieError when pixels k and k+1 differ by no more than
        tie_tol."""
        pixels = cam.numel()
        if pixels < 2:
            raise InputError("the CAM has a single pixel, so there is no top-k set that could change")
        k = integer("k", k, 1, pixels - 1, f" (the CAM has {pixels} pixels)")
        within = k if within is None else integer("within", within, k, pixels - 1, f" (k is {k}, the CAM has {pixels})")
        tie_tol = not_negative("tie_tol", tie_tol)
        values = cam.flatten()
        order = torch.argsort(values, descending=True, stable=True)
        gap = float(values[order[k - 1]] - values[order[k]])
        if gap <= tie_tol:
            raise TieError(
                f"CAM pixels {k} and {k + 1} differ by {gap:.3g} at the given image (tie_tol {tie_tol:.3g}), so its "
                f"top-{k} set is not defined; choose another k"
            )
        top, rest = order[:k].clone(), order[k:].clone()
        rivals = rest if within == k else order
        ahead = (values[top][:, None] <= values[rivals]) & (top[:, None] != rivals)
        return cls(k, within, top, rest, rivals, ahead, gap)

    @property
    def allowed(self) -> int:
        """How many rivals may be as bright as a top pixel."""
        return 0 if self.within == self.k else self.within - 1

    @property
    def own(self) -> Tensor:
        """Where (k, R) a rival is the top pixel itself."""
        return self.top[:, None] == self.rivals

    @pinned_with_grad
    def gaps(self, cams: Tensor) -> Tensor:
        """``CAM_i - CAM_j`` (N, k, R) of CAMs (N, H, W); infinite for a pixel and itself."""
        flat = cams.flatten(1)
        found = flat[:, self.top, None] - flat[:, None, self.rivals]
        return found.masked_fill(self.own.to(found.device), torch.inf)

    @pinned_with_grad
    def slack(self, gaps: Tensor) -> Tensor:
        """The slack (..., k) of each top pixel, of gaps (..., k, R) or of lower bounds on them.

        It is the smallest gap after as many as are allowed. A pixel whose slack is not positive falls out.
        """
        return gaps.amin(dim=-1) if self.allowed == 0 else gaps.kthvalue(self.allowed + 1, dim=-1).values

    @pinned_with_grad
    def margin(self, cams: Tensor) -> Tensor:
        """``min over top pixels of CAM_i - (the within-th brightest of the others)`` (N,) for CAMs (N, H, W).

        With ``within = k``: ``min over the top of CAM - max over the rest of CAM``, of the same sign. <= 0: broken.
        """
        if self.allowed == 0:
            flat = cams.flatten(1)
            return flat[:, self.top].min(dim=1).values - flat[:, self.rest].max(dim=1).values
        return self.slack(self.gaps(cams)).amin(dim=1)

    @pinned
    def worst_pair(self, cam: Tensor) -> tuple[int, int]:
        """The top pixel and the rival that :meth:`margin` of a CAM (H, W) is about."""
        gaps = self.gaps(cam[None])[0]
        row = int(self.slack(gaps).argmin())
        rival = int(gaps[row].argsort(stable=True)[self.allowed])
        return int(self.top[row]), int(self.rivals[rival])
