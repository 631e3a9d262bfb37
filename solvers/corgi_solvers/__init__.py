"""LP, MILP and SOCP backends behind one Problem and one Solution; knows nothing of neural networks."""

from corgi_solvers.backend import Backend, Capabilities
from corgi_solvers.balls import NormBall
from corgi_solvers.errors import BackendMissingError, ProblemError, SolverError
from corgi_solvers.highs import Highs
from corgi_solvers.problem import Problem, dual_objective
from corgi_solvers.solution import Report, Solution, Status

__all__ = [
    "Backend",
    "BackendMissingError",
    "Capabilities",
    "Highs",
    "NormBall",
    "Problem",
    "ProblemError",
    "Report",
    "Solution",
    "SolverError",
    "Status",
    "dual_objective",
]
