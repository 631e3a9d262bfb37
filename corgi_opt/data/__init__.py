"""The images and networks of the demo (:mod:`digits`) and of the paper's case study (:mod:`gtsrb`).

Importing this needs neither scikit-image nor h5py: optional packages are imported where they are used.
"""

from corgi_opt.data import digits, gtsrb

__all__ = ["digits", "gtsrb"]
