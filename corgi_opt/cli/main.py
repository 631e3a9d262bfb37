"""The command line: ``corgi-opt verify | radius | compare | check | study | doctor | demo``.

Exit codes: 0 certified (or done), 1 falsified, 2 unknown (of a radius: nothing is certified), 3 usage error,
unsupported model or crash, 130 stopped by Ctrl-C, 141 nobody read the output to its end (ending.py).
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from corgi_opt._version import __version__
from corgi_opt.answering.comparison import compare
from corgi_opt.answering.prover import check_certificate
from corgi_opt.answering.radius_search import radius
from corgi_opt.answering.verdict import verify
from corgi_opt.cli.answers import answered, say_comparison, say_radius, say_verdict
from corgi_opt.cli.demo import run_demo
from corgi_opt.cli.doctor import examined
from corgi_opt.cli.ending import code_of
from corgi_opt.cli.files import picture_file, writable, writing
from corgi_opt.cli.options import (
    Eps,
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
from corgi_opt.errors import InputError, ProofError
from corgi_opt.problem.plain import plain
from corgi_opt.proof.certificate import Certificate

EXIT = {"certified": 0, "falsified": 1, "unknown": 2}
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Do the k brightest pixels of this CNN's class activation map stay the same for every image within eps?",
    epilog="Exit codes: 0 certified (or done), 1 falsified, 2 unknown (or a radius of 0), 3 usage error or unsupported "
    "model, 130 stopped by Ctrl-C, 141 output not read to its end. "
    "CORGI_TRACEBACK=1 in the environment shows the whole traceback of an error.",
)
app.add_typer(study_app, name="study")


def _say_version(wanted: bool) -> None:
    if wanted:
        say(f"corgi-opt {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


@app.command("verify")
@unfolded
def verify_command(
    subject: Subject,
    eps: Eps,
    what: What,
    setting: Setting,
    means: MeansAtOneEps,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", help="write the proof here; only what it proves is certified")
    ] = None,
    as_json: Json = False,
) -> None:
    """Is the top-k set the same for every image within eps? Exit code 0 certified, 1 falsified, 2 unknown."""
    if certificate is not None:
        writable(certificate)
    net, x = setting.loaded(subject)
    asked = {**what.keywords(), **setting.keywords(), **means.keywords()}
    proof: Literal["float64", "checked"] = "float64" if certificate is None else "checked"
    v = answered(lambda: verify(net, x, eps=eps, proof=proof, **asked), emit if as_json else say_verdict)
    if certificate is not None and v.proof == "checked":
        with writing(certificate):
            v.certificate.save(certificate)
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
    """The bracket: the largest certified eps and the smallest falsified eps.

    Exit code 0: an eps above 0 is certified, 2: none is.
    """
    net, x = setting.loaded(subject)
    asked = {**what.keywords(), **setting.keywords(), **means.keywords()}
    r = answered(lambda: radius(net, x, rtol=rtol, **asked), emit if as_json else say_radius)
    raise typer.Exit(EXIT["certified" if r.lower > 0 else "unknown"])


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
        picture_file(plot)
    net, x = setting.loaded(subject)
    asked = {**several.keywords(), **setting.keywords(), **means.keywords()}
    c = answered(lambda: compare(net, x, **asked), emit if as_json else say_comparison)
    if plot is not None:
        import matplotlib

        matplotlib.use("Agg")
        with writing(plot):
            c.plot().figure.savefig(plot, dpi=150)


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
    say("\nTry next:\n  corgi-opt compare digits --image 1117 --k 4 --plot out/compare.png")


def main() -> None:
    """The console script: turns our own errors into one clear line and exit code 3."""
    sys.exit(code_of(lambda: app(standalone_mode=False)))
