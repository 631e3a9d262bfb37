"""LP, MILP and SOCP backends behind one Problem and one Solution; knows nothing of neural networks."""

from corgi_solvers.backend import Backend, Capabilities
from corgi_solvers.balls import NormBall
from corgi_solvers.choose import backend, names
from corgi_solvers.cvxpy import Cvxpy
from corgi_solvers.errors import BackendBrokenError, BackendMissingError, ProblemError, SolverError
from corgi_solvers.highs import Highs
from corgi_solvers.mps import write_mps
from corgi_solvers.problem import Problem, dual_objective
from corgi_solvers.pulp import Pulp
from corgi_solvers.safe_bound import proves_infeasible, safe_bound
from corgi_solvers.solution import Report, Solution, Status

__all__ = [
    "Backend",
    "BackendBrokenError",
    "BackendMissingError",
    "Capabilities",
    "Cvxpy",
    "Highs",
    "NormBall",
    "Problem",
    "ProblemError",
    "Pulp",
    "Report",
    "Solution",
    "SolverError",
    "Status",
    "backend",
    "dual_objective",
    "names",
    "proves_infeasible",
    "safe_bound",
    "write_mps",
]
