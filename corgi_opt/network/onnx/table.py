"""The table of ONNX operations: how each is prepared, and why some are not.

A preparation takes a :class:`Call` and gives the run, a function of torch tensors. What a network may be made of in the
end is decided elsewhere (``corgi_opt/network/builders.py``); this is what ONNX means by its names.
"""

from __future__ import annotations

from collections.abc import Callable

from corgi_opt.network.onnx.node import Call, Run

Prepare = Callable[[Call], Run]

TABLE: dict[str, Prepare] = {}
"""By ONNX's name of the operation."""

TERMS: dict[str, tuple[int, ...]] = {}
"""Operations that are sums of products: the sign with which each operand of the run enters when it is positive (the
last for all that follow). With operands of these signs and their own sizes the run gives the sum of absolute terms."""


def onnx_op(*names: str, signs: tuple[int, ...] | None = None) -> Callable[[Prepare], Prepare]:
    def register(prepare: Prepare) -> Prepare:
        TABLE.update(dict.fromkeys(names, prepare))
        if signs is not None:
            TERMS.update(dict.fromkeys(names, signs))
        return prepare

    return register


_FLOW = "The computation must be one fixed sequence of operations; export the branch that is meant."
_QUANTISED = "Quantised networks round inside; export the float model it was made from."
_VARIANCE = "It divides by the input's own size or variance; use batch norm instead."
_RECURRENT = "Only feed-forward CNNs have a CAM."
_CHOICE = "It chooses by the image's values; only affine and piecewise-linear layers have an exact form."
_RANDOM = "It is another function at every call."

ADVICE = {
    **dict.fromkeys(("If", "Loop", "Scan", "SequenceMap"), _FLOW),
    **dict.fromkeys(
        (
            "QuantizeLinear",
            "DequantizeLinear",
            "DynamicQuantizeLinear",
            "QLinearConv",
            "QLinearMatMul",
            "ConvInteger",
            "MatMulInteger",
        ),
        _QUANTISED,
    ),
    **dict.fromkeys(
        (
            "LRN",
            "InstanceNormalization",
            "LayerNormalization",
            "GroupNormalization",
            "RMSNormalization",
            "LpNormalization",
            "MeanVarianceNormalization",
            "LpPool",
            "GlobalLpPool",
            "ReduceL2",
        ),
        _VARIANCE,
    ),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _RECURRENT),
    **dict.fromkeys(("TopK", "ArgMax", "ArgMin", "NonMaxSuppression", "NonZero", "Hardmax", "MaxUnpool"), _CHOICE),
    **dict.fromkeys(
        ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"), _RANDOM
    ),
}


def advice(op: str) -> str:
    """What to do about an operation that is not in the table."""
    return ADVICE.get(
        op, "The ONNX operations that are read are listed in docs/models.md; rewrite this step with those."
    )
