"""Keras models as CAM networks: files of Keras 2 and 3 (.h5, .hdf5, .keras), read without Keras and TensorFlow.

``store`` opens a file as plain data, ``graph`` makes calls of its configuration, ``weights`` finds the arrays, and
``table`` has a builder for every layer that is read; what comes out is a torch model like any other.
"""

from corgi_opt.data.keras.entry import from_keras, torch_model
from corgi_opt.data.keras.store import is_keras_file

__all__ = ["from_keras", "is_keras_file", "torch_model"]
