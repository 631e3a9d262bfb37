"""Weights from files: safetensors first, torch's own format only as far as it needs no code to be run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from corgi_opt._ambient import pinned
from corgi_opt.errors import InputError

MOST_BYTES = 4_000_000_000
"""Largest file of weights that is read."""

MOST_NAMED = 4
"""Names of each kind that an error lists."""

WRAPPED = "module."
"""What DataParallel puts before every name."""


@pinned
def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Puts the weights of a file into a model, all of them, and returns it in eval mode.

    ``path``: a ``.safetensors`` file, or a ``.pt`` or ``.pth`` file that holds a state dict and nothing else: it is
    read with ``weights_only=True``, and there is no other way to read it here.

    Names that all begin with ``module.`` (DataParallel and DistributedDataParallel write it) are read without it, where
    none of the model's own does: the names that are left are then held against the model's as any others.

    Raises InputError for a file that is missing, too large, of another kind or damaged, and for weights that are not
    this model's, which then has its own still.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    if path.stat().st_size > MOST_BYTES:
        raise InputError(
            f"{path} holds {path.stat().st_size:,} bytes; weights of more than {MOST_BYTES:,} are not read"
        )
    state, before = _read(path), {name: value.detach().clone() for name, value in model.state_dict().items()}
    wrapped = bool(state) and all(name.startswith(WRAPPED) for name in state)
    wrapped = wrapped and not any(name.startswith(WRAPPED) for name in before)
    if wrapped:
        state = {name.removeprefix(WRAPPED): value for name, value in state.items()}
    try:
        model.load_state_dict(state)
    except Exception as error:  # sparse and quantized tensors bring errors of their own
        model.load_state_dict(before)  # torch has copied what it could
        read = f" (read without the {WRAPPED!r} that DataParallel puts before every name)" if wrapped else ""
        differ = "; ".join(_differences(state, before)) or str(error)
        raise InputError(f"the weights in {path} are not this model's{read}: {differ}") from error
    return model.eval()


def _differences(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """How the names and shapes of a file differ from a model's own, in words."""
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{name} is {tuple(state[name].shape)} in the file and {tuple(value.shape)} in the model"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    some = [name for name in unexpected if name.startswith(WRAPPED)]
    hint = f"some names begin with {WRAPPED!r}, from DataParallel: save model.module.state_dict() instead"
    return [
        *_listed("missing in the file", missing),
        *_listed("not in the model", unexpected),
        *_listed("of another shape", shapes),
        *([hint] if some else []),
    ]


def _listed(what: str, found: Sequence[str]) -> list[str]:
    """The first few of those that there are, and how many."""
    rest = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return [f"{len(found)} {what}: {', '.join(found[:MOST_NAMED])}{rest}"] if found else []


def _read(path: Path) -> dict[str, Tensor]:
    suffix = path.suffix.lower()
    if suffix not in (".safetensors", ".pt", ".pth"):
        raise InputError(f"{path}: weights are read from .safetensors, .pt or .pth files")
    try:
        if suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how the file was written
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        hint = "" if suffix == ".safetensors" else "; save model.state_dict() with safetensors.torch.save_file instead"
        said = (str(error).splitlines() or [""])[0]
        raise InputError(f"cannot read weights from {path}: {type(error).__name__}: {said}{hint}") from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        keys = f" (it holds {', '.join(map(repr, list(state)[:MOST_NAMED]))})" if isinstance(state, dict) else ""
        raise InputError(f"{path} holds no state dict of tensors{keys}; save model.state_dict() alone")
    return state
