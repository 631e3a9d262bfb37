"""The table of ONNX operations, filled: whoever reads it takes it from here."""

from __future__ import annotations

from corgi_opt.network.onnx import arithmetic, layers, pooling, resizing, shaping
from corgi_opt.network.onnx.table import TABLE, TERMS, advice

__all__ = ["FILLED_BY", "TABLE", "TERMS", "advice"]

FILLED_BY = (arithmetic, layers, pooling, resizing, shaping)
"""Modules whose import fills the table."""
