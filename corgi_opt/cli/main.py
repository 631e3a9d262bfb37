"""The command line: ``corgi-opt verify | radius | compare | check | study | demo``.

Exit codes: 0 certified (or done), 1 falsified, 2 unknown, 3 usage error or unsupported model. A crash, a user's own
failing model file included, is 3 with its traceback: Python's usual 1 would read as falsified.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from corgi_opt.answering.backends import check_solver
from corgi_opt.answering.comparison import Compared, compare
from corgi_opt.answering.prover import check_certificate
from corgi_opt.answering.radius_search import radius
from corgi_opt.answering.verdict import verify
from corgi_opt.cli.demo import run_demo
from corgi_opt.cli.output import console, emit, say
from corgi_opt.cli.study import study_app
from corgi_opt.data.sources import load, load_model
from corgi_opt.drawing.maps import check_picture
from corgi_opt.errors import CorgiError, InputError, ProofError
from corgi_opt.methods import TABLE
from corgi_opt.problem.clip import clip_from_text
from corgi_opt.problem.plain import plain
from corgi_opt.problem.properties import PROPERTIES
from corgi_opt.problem.region import canonical_norm
from corgi_opt.problem.results import Radius

T = TypeVar("T")

EXIT = {"certified": 0, "falsified": 1, "unknown": 2}
USAGE, INTERRUPTED = 3, 130

# usage errors are of click's class, which newer typers carry a copy of: no import finds it in all of them
CLICK_ERROR: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Do the k brightest pixels of this CNN's class activation map stay the same for every image within eps?",
    epilog="Exit codes: 0 certified (or done), 1 falsified, 2 unknown, 3 usage error or unsupported model.",
)
app.add_typer(study_app, name="study")

Model = Annotated[
    str,
    typer.Argument(
        help="'digits' (bundled), or path/to/model.keras (.h5, .hdf5), or path/to/file.py:function, or "
        "package.module:function returning an eval-mode nn.Module"
    ),
]
Image = Annotated[
    str, typer.Option("--image", help="a .npy array, an image file, or an index into the bundled test digits")
]
K = Annotated[int | None, typer.Option("--k", help="how many brightest CAM pixels")]
PropertyText = Annotated[
    str | None, typer.Option("--property", help=f"what is asked instead of --k: {', '.join(PROPERTIES)}, or its JSON")
]
Within = Annotated[
    int | None, typer.Option("--within", help="each of the k stays among so many brightest; default k: the set")
]
KeepClass = Annotated[
    bool, typer.Option("--keep-class", help="only images of the predicted class count as counterexamples")
]


def _there(solver: str | None) -> str | None:
    """A solver that is named is there before a model is loaded for it. Raises InputError, MissingPackageError."""
    if solver is not None:
        check_solver(solver, "lp", "inf")  # every solver takes linear programs
    return solver


SolverName = Annotated[
    str | None,
    typer.Option("--solver", callback=_there, help="of lp, milp and bab: highs, pulp:cbc, cvxpy:clarabel ..."),
]
Class = Annotated[int | None, typer.Option("--class", help="class index; default: the predicted class")]
NormText = Annotated[str, typer.Option("--norm", help="inf, 2 or 1")]
ClipText = Annotated[
    str,
    typer.Option(
        "--clip", help="the box images live in: 'low,high', one for each channel 'low,high;low,high;...', or 'none'"
    ),
]
Size = Annotated[int | None, typer.Option("--size", min=1, help="resize an image file to SIZE x SIZE pixels")]
Weights = Annotated[Path | None, typer.Option("--weights", help="a .safetensors, .pt or .pth file with its state dict")]
Seconds = Annotated[float, typer.Option("--time-limit", help="total seconds")]
Device = Annotated[str, typer.Option("--device", help="'auto', 'cpu', 'cuda', ...")]
Seed = Annotated[int, typer.Option("--seed", help="seed of the attack's random starts")]
CertificateFile = Annotated[
    Path | None, typer.Option("--certificate", help="write the proof here; only what it proves is certified")
]
Method = Annotated[str, typer.Option("--method", help=", ".join(TABLE))]
COMPARED = "comma-separated; default: corgi, crown, dual, lp, and bab or auto"
Json = Annotated[bool, typer.Option("--json", help="print one machine-readable object instead")]


@app.command("verify")
def verify_command(
    model: Model,
    image: Image,
    eps: Annotated[float, typer.Option("--eps", help="distance in the norm, in units of the input")],
    k: K = None,
    within: Within = None,
    property: PropertyText = None,
    method: Method = "auto",
    keep_class: KeepClass = False,
    class_idx: Class = None,
    norm: NormText = "inf",
    clip: ClipText = "0,1",
    size: Size = None,
    weights: Weights = None,
    solver: SolverName = None,
    time_limit: Seconds = 300.0,
    device: Device = "auto",
    seed: Seed = 0,
    certificate: CertificateFile = None,
    as_json: Json = False,
) -> None:
    """Is the top-k set the same for every image within eps? Exit code 0 certified, 1 falsified, 2 unknown."""
    net, x = load(model, image, size, weights)
    v = verify(
        net,
        x,
        eps=eps,
        k=k,
        within=within,
        property=property,
        method=method,
        class_idx=class_idx,
        keep_class=keep_class,
        solver=solver,
        norm=canonical_norm(norm),
        clip=clip_from_text(clip),
        time_limit=time_limit,
        device=device,
        seed=seed,
        proof="float64" if certificate is None else "checked",
    )
    if certificate is not None and v.proof == "checked":
        v.certificate.save(certificate)
    if as_json:
        emit(v)
    else:
        colour = {"certified": "green", "falsified": "red", "unknown": "yellow"}[v.status]
        about = f"eps={v.eps:g}, {v.asked.short}"
        say(f"{v.status} at {about}: {v.reason}", style=f"bold {colour}")
        say(f"  margin in [{v.margin_lower:.6g}, {v.margin_upper:.6g}]; CORGI's bound {v.corgi_in_words}")
        say(f"  settled by {v.method}" + (f", proof: {v.proof}" if v.proof else ""))
    raise typer.Exit(EXIT[v.status])


@app.command("radius")
def radius_command(
    model: Model,
    image: Image,
    k: K = None,
    within: Within = None,
    property: PropertyText = None,
    method: Method = "auto",
    rtol: Annotated[float, typer.Option("--rtol", help="relative resolution of the bracket")] = 0.01,
    keep_class: KeepClass = False,
    class_idx: Class = None,
    norm: NormText = "inf",
    clip: ClipText = "0,1",
    size: Size = None,
    weights: Weights = None,
    solver: SolverName = None,
    time_limit: Seconds = 600.0,
    device: Device = "auto",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """The bracket: the largest certified eps and the smallest falsified eps."""
    net, x = load(model, image, size, weights)
    r = radius(
        net,
        x,
        k=k,
        within=within,
        property=property,
        method=method,
        rtol=rtol,
        class_idx=class_idx,
        keep_class=keep_class,
        solver=solver,
        norm=canonical_norm(norm),
        clip=clip_from_text(clip),
        time_limit=time_limit,
        device=device,
        seed=seed,
    )
    if as_json:
        emit(r)
    else:
        say(f"certified up to {r.lower:.6g}, falsified at {r.upper:.6g} (ratio {r.ratio:.4f})", style="bold")
        beside = f"corgi {r.corgi_in_words}, attack {r.attack:.6g}"
        say(f"  {r.asked.short}, {r.method}; {beside}")
        say(f"  {r.reason}")


@app.command("compare")
def compare_command(
    model: Model,
    image: Image,
    ks: Annotated[str | None, typer.Option("--k", help="how many brightest CAM pixels; several: 1,3,5")] = None,
    property: PropertyText = None,
    epses: Annotated[str | None, typer.Option("--eps", help="margins at one or several eps, instead of radii")] = None,
    methods: Annotated[str | None, typer.Option("--methods", help=COMPARED)] = None,
    rtol: Annotated[float, typer.Option("--rtol", help="relative resolution of each radius")] = 0.01,
    within: Within = None,
    keep_class: KeepClass = False,
    class_idx: Class = None,
    norm: NormText = "inf",
    clip: ClipText = "0,1",
    size: Size = None,
    weights: Weights = None,
    solver: SolverName = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="save the picture here")] = None,
    time_limit: Seconds = 600.0,
    device: Device = "auto",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """The radius, or the margin at an eps, by every method, side by side."""
    if plot is not None:
        check_picture(plot)
    net, x = load(model, image, size, weights)
    c = compare(
        net,
        x,
        k=None if ks is None else _listed("--k", ks, int),
        property=property,
        eps=None if epses is None else _listed("--eps", epses, float),
        methods=None if methods is None else [m.strip() for m in methods.split(",") if m.strip()],
        rtol=rtol,
        class_idx=class_idx,
        within=within,
        keep_class=keep_class,
        solver=solver,
        norm=canonical_norm(norm),
        clip=clip_from_text(clip),
        time_limit=time_limit,
        device=device,
        seed=seed,
    )
    if plot is not None:
        import matplotlib

        matplotlib.use("Agg")
        c.plot().figure.savefig(plot, dpi=150)
    if as_json:
        emit(c)
    else:
        for q in c.questions:
            console.print(_table(q))
            for name, answer in q.answers.items():
                say(f"{name}: {answer.reason}")


@app.command("check")
def check_command(
    file: Annotated[Path, typer.Argument(help="a certificate")],
    model: Annotated[str, typer.Option("--model", help="what it is about: as MODEL of verify")],
    weights: Weights = None,
    exact: Annotated[bool, typer.Option("--exact", help="in rational arithmetic (slow: small networks)")] = False,
    as_json: Json = False,
) -> None:
    """Proves a certificate's claim anew. Exit code 0 certified, 1 falsified, 2 not proven, 3 no certificate."""
    try:
        found = check_certificate(file, load_model(model, weights), exact=exact)
    except ProofError as error:
        if as_json:
            emit({"proven": False, "reason": str(error)})
        else:
            say(f"not proven: {error}", style="bold yellow")
        raise typer.Exit(EXIT["unknown"]) from error
    except OSError as error:
        raise InputError(f"no certificate can be read from {str(file)!r}: {error}") from error
    if as_json:
        emit({"proven": True, **plain(found)})
    else:
        how = "in exact rational arithmetic" if found.exact else "in float64 with bounds of all rounding"
        side = "at least" if found.kind == "certified" else "at most"
        say(f"proven {how}: {found.kind}, margin {side} {found.margin:.6g}", style="bold green")
        say(f"  {found.seconds:.2f} s")
    raise typer.Exit(EXIT[found.kind])


@app.command("demo")
def demo_command(
    picture: Annotated[Path, typer.Option("--picture", help="where the picture goes")] = Path("out/demo.png"),
) -> None:
    """Certify and break the bundled digits network: one table, one picture."""
    run_demo(console, picture, images=(0, 1, 2, 3), ks=(1, 3, 5))
    say("\nTry next:\n  corgi-opt compare digits --image 7 --k 4 --plot out/compare.png")


def _table(q: Compared) -> Table:
    about = q.asked.in_words
    margins = q.eps is not None
    table = Table(title=f"{about}, eps={q.eps:g}" if margins else about, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("method")
    heads = (
        ("margin, proven", "met", "seconds")
        if margins
        else ("certified eps", "falsified eps", "ratio", "over corgi", "seconds")
    )
    for name in heads:
        table.add_column(name, justify="right")
    for name, answer in q.answers.items():
        seconds = f"{q.seconds[name]:.2f}" if name in q.seconds else "-"
        if isinstance(answer, Radius):
            gain = f"{answer.lower / answer.corgi:.3f}" if answer.corgi > 0 else "-"
            table.add_row(name, f"{answer.lower:.6g}", f"{answer.upper:.6g}", f"{answer.ratio:.4f}", gain, seconds)
        else:
            table.add_row(name, f"{answer.margin_lower:.6g}", f"{answer.margin_upper:.6g}", seconds)
    return table


def _listed(option: str, text: str, number: Callable[[str], T]) -> list[T]:
    try:
        return [number(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option} must be a number, or several with commas between, got {text!r}") from error


def main() -> None:
    """The console script: turns our own errors into one clear line and exit code 3."""
    try:
        code = app(standalone_mode=False)
    except CorgiError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        code = USAGE
    except CLICK_ERROR as error:
        error.show()
        code = USAGE
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception:
        traceback.print_exc()
        code = USAGE
    sys.exit(code or 0)
