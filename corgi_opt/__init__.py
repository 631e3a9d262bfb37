"""corgi_opt: exact top-k certificates and counterexamples for class activation maps of PyTorch CNNs.

What a long run does goes to the logger ``corgi_opt``, which is silent unless a program listens to it.
"""

import logging

from corgi_opt._version import __version__ as __version__
from corgi_opt.answering.attacking import attack
from corgi_opt.answering.comparison import Compared, Comparison, compare
from corgi_opt.answering.heatmap import HeatMap, heat_map
from corgi_opt.answering.model_check import ModelCheck, check_model
from corgi_opt.answering.mps import Exported, export_mps
from corgi_opt.answering.prover import check_certificate
from corgi_opt.answering.radius_search import radius
from corgi_opt.answering.verdict import verify
from corgi_opt.answering.vnnlib import ExportedVnnlib, export_vnnlib
from corgi_opt.bounding.dual import Interval
from corgi_opt.bounding.node_bounds import bounds
from corgi_opt.data.keras import from_keras
from corgi_opt.errors import (
    BoundOrderError,
    CertificateError,
    CorgiError,
    InputError,
    Interrupted,
    MissingPackageError,
    ModelModeError,
    NoCamHeadError,
    NumericalError,
    ParityError,
    ProofError,
    StoreError,
    StudyError,
    TieError,
    UnknownMethodError,
    UnsupportedOpError,
    UserCodeError,
)
from corgi_opt.network.cam import CamNetwork, from_torch
from corgi_opt.network.graph import LayerGraph
from corgi_opt.network.ingest import Unsupported
from corgi_opt.network.onnx.network import from_onnx
from corgi_opt.network.weights import load_weights
from corgi_opt.plots import plot_cam
from corgi_opt.problem.properties import KeepsClass, TopK
from corgi_opt.problem.region import Ball
from corgi_opt.problem.results import Radius, Verdict
from corgi_opt.problem.witness import Witness
from corgi_opt.proof.certificate import Certificate
from corgi_opt.proof.checker import Checked
from corgi_opt.search.attack import PgdOptions

logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "Ball",
    "BoundOrderError",
    "CamNetwork",
    "Certificate",
    "CertificateError",
    "Checked",
    "Compared",
    "Comparison",
    "CorgiError",
    "Exported",
    "ExportedVnnlib",
    "HeatMap",
    "InputError",
    "Interrupted",
    "Interval",
    "KeepsClass",
    "LayerGraph",
    "MissingPackageError",
    "ModelCheck",
    "ModelModeError",
    "NoCamHeadError",
    "NumericalError",
    "ParityError",
    "PgdOptions",
    "ProofError",
    "Radius",
    "StoreError",
    "StudyError",
    "TieError",
    "TopK",
    "UnknownMethodError",
    "Unsupported",
    "UnsupportedOpError",
    "UserCodeError",
    "Verdict",
    "Witness",
    "attack",
    "bounds",
    "check_certificate",
    "check_model",
    "compare",
    "export_mps",
    "export_vnnlib",
    "from_keras",
    "from_onnx",
    "from_torch",
    "heat_map",
    "load_weights",
    "plot_cam",
    "radius",
    "verify",
]
