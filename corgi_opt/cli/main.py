"""The command line: ``corgi-opt verify | radius | compare | check | study | doctor | demo``.

Exit codes: 0 certified (or done), 1 falsified, 2 unknown, 3 usage error or unsupported model. A crash, a user's own
failing model file included, is 3 with its traceback: Python's usual 1 would read as falsified.
"""

from __future__ import annotations

import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from corgi_opt.answering.comparison import Compared, added_briefly, compare
from corgi_opt.answering.prover import check_certificate
from corgi_opt.answering.radius_search import radius
from corgi_opt.answering.verdict import verify
from corgi_opt.cli.demo import run_demo
from corgi_opt.cli.doctor import examined
from corgi_opt.cli.options import (
    Json,
    Means,
    MeansAtOneEps,
    Setting,
    Several,
    Subject,
    Weights,
    What,
    unfolded,
)
from corgi_opt.cli.output import console, emit, say
from corgi_opt.cli.study import study_app
from corgi_opt.data.sources import load_model, onnx_name
from corgi_opt.drawing.maps import check_picture
from corgi_opt.errors import CorgiError, InputError, ProofError
from corgi_opt.problem.plain import plain
from corgi_opt.problem.results import Radius
from corgi_opt.proof.certificate import Certificate

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


@app.command("verify")
@unfolded
def verify_command(
    subject: Subject,
    eps: Annotated[float, typer.Option("--eps", help="distance in the norm, in units of the input")],
    what: What,
    setting: Setting,
    means: MeansAtOneEps,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", help="write the proof here; only what it proves is certified")
    ] = None,
    as_json: Json = False,
) -> None:
    """Is the top-k set the same for every image within eps? Exit code 0 certified, 1 falsified, 2 unknown."""
    net, x = setting.loaded(subject)
    proof: Literal["float64", "checked"] = "float64" if certificate is None else "checked"
    v = verify(net, x, eps=eps, proof=proof, **what.keywords(), **setting.keywords(), **means.keywords())
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
@unfolded
def radius_command(
    subject: Subject,
    what: What,
    *,
    rtol: Annotated[float, typer.Option("--rtol", help="relative resolution of the bracket")] = 0.01,
    setting: Setting,
    means: Means,
    as_json: Json = False,
) -> None:
    """The bracket: the largest certified eps and the smallest falsified eps."""
    net, x = setting.loaded(subject)
    r = radius(net, x, rtol=rtol, **what.keywords(), **setting.keywords(), **means.keywords())
    if as_json:
        emit(r)
    else:
        say(f"certified up to {r.lower:.6g}, falsified at {r.upper:.6g} (ratio {r.ratio:.4f})", style="bold")
        beside = f"corgi {r.corgi_in_words}, attack {r.attack:.6g}"
        say(f"  {r.asked.short}, {r.method}; {beside}")
        say(f"  {r.reason}")


@app.command("compare")
@unfolded
def compare_command(
    subject: Subject,
    several: Several,
    setting: Setting,
    *,
    plot: Annotated[Path | None, typer.Option("--plot", help="save the picture here")] = None,
    means: Means,
    as_json: Json = False,
) -> None:
    """The radius, or the margin at an eps, by every method, side by side."""
    if plot is not None:
        check_picture(plot)
    net, x = setting.loaded(subject)
    c = compare(net, x, **several.keywords(), **setting.keywords(), **means.keywords())
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
        shape = Certificate.load(file).claim.region.center.shape if onnx_name(model) else None
        checked = check_certificate(file, load_model(model, weights, shape), exact=exact)
    except ProofError as error:
        if as_json:
            emit({"proven": False, "reason": str(error)})
        else:
            say(f"not proven: {error}", style="bold yellow")
        raise typer.Exit(EXIT["unknown"]) from error
    except OSError as error:
        raise InputError(f"no certificate can be read from {str(file)!r}: {error}") from error
    if as_json:
        emit({"proven": True, **plain(checked)})
    else:
        how = "in exact rational arithmetic" if checked.exact else "in float64 with bounds of all rounding"
        side = "at least" if checked.kind == "certified" else "at most"
        say(f"proven {how}: {checked.kind}, margin {side} {checked.margin:.6g}", style="bold green")
        say(f"  {checked.seconds:.2f} s")
    raise typer.Exit(EXIT[checked.kind])


@app.command("doctor")
def doctor_command(as_json: Json = False) -> None:
    """What is installed here and works, and a question that is answered to its end. Exit code 0 when all that is needed
    works, 2 when not."""
    findings = examined()
    if as_json:
        emit([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            mark, style = ("ok", "green") if finding.works else ("no", "red" if finding.needed else "yellow")
            say(f"{mark}  {finding.what}: {finding.said}", style=style)
    raise typer.Exit(0 if all(finding.works for finding in findings if finding.needed) else EXIT["unknown"])


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
        seconds = added_briefly(q.seconds.get(name))
        if isinstance(answer, Radius):
            gain = f"{answer.lower / answer.corgi:.3f}" if answer.corgi > 0 else "-"
            table.add_row(name, f"{answer.lower:.6g}", f"{answer.upper:.6g}", f"{answer.ratio:.4f}", gain, seconds)
        else:
            table.add_row(name, f"{answer.margin_lower:.6g}", f"{answer.margin_upper:.6g}", seconds)
    return table


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
