"""One table: class of Keras layer -> how it is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from corgi_opt.data.keras import affine, pointwise, spatial
from corgi_opt.data.keras.layer import Built, Flow, Layer

Builder = Callable[[Layer, Sequence[Flow]], Built]

_IN_TRAINING_ONLY = (
    *("Dropout", "SpatialDropout1D", "SpatialDropout2D", "AlphaDropout", "GaussianDropout", "GaussianNoise"),
    *("ActivityRegularization", "Identity", "RandomFlip", "RandomRotation", "RandomTranslation", "RandomZoom"),
    *("RandomContrast", "RandomBrightness"),
)

BUILDERS: Mapping[str, Builder] = {
    **{f"Conv{n}D": partial(affine.conv, rank=n) for n in (1, 2)},
    **{f"DepthwiseConv{n}D": partial(affine.depthwise, rank=n) for n in (1, 2)},
    **{f"SeparableConv{n}D": partial(affine.separable, rank=n) for n in (1, 2)},
    "Conv2DTranspose": affine.transposed,
    "Dense": affine.dense,
    "BatchNormalization": affine.batch_norm,
    "Activation": pointwise.activation_layer,
    "ReLU": pointwise.relu,
    "LeakyReLU": pointwise.leaky_relu,
    "PReLU": pointwise.prelu,
    "ELU": pointwise.elu,
    "Softmax": pointwise.softmax,
    "Rescaling": pointwise.rescaling,
    "Normalization": pointwise.normalization,
    **dict.fromkeys(_IN_TRAINING_ONLY, pointwise.nothing),
    **{f"MaxPooling{n}D": partial(spatial.pool, rank=n, largest=True) for n in (1, 2)},
    **{f"AveragePooling{n}D": partial(spatial.pool, rank=n, largest=False) for n in (1, 2)},
    **{f"GlobalMaxPooling{n}D": partial(spatial.global_pool, rank=n, largest=True) for n in (1, 2)},
    **{f"GlobalAveragePooling{n}D": partial(spatial.global_pool, rank=n, largest=False) for n in (1, 2)},
    **{f"ZeroPadding{n}D": partial(spatial.zero_padding, rank=n) for n in (1, 2)},
    **{f"Cropping{n}D": partial(spatial.cropping, rank=n) for n in (1, 2)},
    "UpSampling2D": partial(spatial.upsampling, rank=2),
    "Flatten": spatial.flatten,
    "Reshape": spatial.reshape,
    "Permute": spatial.permute,
    **dict.fromkeys(("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"), spatial.merge),
    "Concatenate": spatial.concatenate,
    "Dot": spatial.dot,
    "Lambda": spatial.code,
}

ANY_NUMBER = frozenset(("Add", "Subtract", "Average", "Maximum", "Minimum", "Concatenate", "Multiply", "Dot"))
"""Those that read several maps. All others read one."""

SHAPES_ONLY = frozenset(("Flatten", "Reshape", "Permute", *_IN_TRAINING_ONLY))
"""What leaves values as they are: an activation before them is still at the very end."""


def build(layer: Layer, flows: Sequence[Flow]) -> Built:
    """Its modules, and what it gives. Raises UnsupportedOpError, InputError, each with the layer's name."""
    if layer.kind not in BUILDERS:
        raise layer.unsupported("", f"This kind of layer is not read; known are {', '.join(sorted(BUILDERS))}.")
    if layer.kind not in ANY_NUMBER and len(flows) != 1:
        raise layer.damaged(f"it reads {len(flows)} inputs, where one is expected")
    made, flow = BUILDERS[layer.kind](layer, flows)
    layer.finish()
    if flow.too_large:
        raise layer.damaged(f"it gives a map of shape {flow.size}, which is larger than any that is read here")
    return made, flow
