"""Studies: many questions about many images and networks, answered one by one into a store that survives crashes."""

from corgi_opt.study.ask import Ask
from corgi_opt.study.engine import run
from corgi_opt.study.plan import Cell, Plan
from corgi_opt.study.report import Report, write_report
from corgi_opt.study.store import Progress, Row, Store

__all__ = ["Ask", "Cell", "Plan", "Progress", "Report", "Row", "Store", "run", "write_report"]
