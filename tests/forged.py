"""Certificate files that are small and would have their reader or checker ask for gigabytes; run as a program under a
memory limit by test_memory.py. Prints a line for each: name, error's type, message."""

from __future__ import annotations

import io
import json
import resource
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from corgi_opt.errors import CorgiError
from corgi_opt.proof.certificate import Certificate, Claim, PartTree
from corgi_opt.proof.checker import check
from corgi_opt.proof.network import Network, Node
from corgi_opt.proof.operations import Conv, Input, Relu
from corgi_opt.proof.region import Region
from corgi_opt.proof.statement import TopPixels
from corgi_opt.proof.tree import Tree

GIB = 2**30


def network(side: int, channels: int = 8) -> Network:
    """A 1x1 convolution and a ReLU on one channel of side x side pixels; every unit's sign is open near 0.5."""
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 1, (channels, 1, 1, 1))
    conv = Conv(weight, -0.5 * weight[:, 0, 0, 0], (1, 1), (0, 0), (1, 1), 1)
    shape = (channels, side, side)
    nodes = (Node(Input(), (), (1, side, side)), Node(conv, (0,), shape), Node(Relu(), (1,), shape))
    return Network(nodes, 2, rng.normal(0, 1, (2, channels)))


def tree(units: int, leaves: int = 1, inputs: int = 0) -> Tree:
    """That lists the first units of the ReLU, all open, and any multipliers."""
    flat = np.arange(units)
    phases = np.zeros((leaves, units), np.int8)
    hints = np.zeros((leaves, units), np.float32)
    return Tree(np.full(units, 2), flat, phases, hints, hints, np.zeros((leaves, units)), np.arange(inputs), None)


def certificate(net: Network, trees: tuple[PartTree, ...] = (), top: int = 1) -> Certificate:
    region = Region(np.full(net.nodes[0].shape, 0.5), 0.1, "inf", None)
    return Certificate(Claim("certified", net.sha256, region, TopPixels(0, tuple(range(top)), top)), {}, trees)


def of_units(units: int, count: int = 1) -> Certificate:
    return certificate(network(50), tuple(PartTree((0, j + 1), (1.0, -1.0), tree(units)) for j in range(count)))


def members(change: Mapping[str, bytes]) -> bytes:
    """The file of a small certificate with parts replaced."""
    source, target = io.BytesIO(of_units(3).to_bytes()), io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for member in old.infolist():
            new.writestr(member.filename, change.get(member.filename, old.read(member)))
    return target.getvalue()


def npy(dtype: str, shape: tuple[int, ...], content: bytes = b"") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def lying(said: int, real: int) -> bytes:
    """One member that says it holds ``said`` bytes and unpacks to ``real``."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    packed = block * (real // 2**20) + zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    name, sizes = b"claim.json", (0, len(packed), said)
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 8, 0, 33, *sizes, len(name), 0) + name
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 8, 0, 33, *sizes, len(name), *(0,) * 6) + name
    start = len(local) + len(packed)
    return local + packed + entry + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(entry), start, 0)


def long_directory(count: int) -> bytes:
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 33, 0, 0, 0, 1, *(0,) * 6) + b"a"
    size = len(entry) * count
    return entry * count + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, size, 0, 0)


FORGED: Mapping[str, Callable[[], bytes | Certificate]] = {
    "units": lambda: of_units(20_000),
    "trees one after another": lambda: of_units(3_000, 4),
    "leaves of no units": lambda: members(
        {
            "trees/0/node.npy": npy("<i8", (0,)),
            "trees/0/flat.npy": npy("<i8", (0,)),
            "trees/0/phases.npy": npy("|i1", (10**9, 0)),
            "trees/0/slopes.npy": npy("<f4", (10**9, 0)),
            "trees/0/mixes.npy": npy("<f4", (10**9, 0)),
            "trees/0/pushes.npy": npy("<f8", (10**9, 0)),
        }
    ),
    "shape without content": lambda: members({"image.npy": npy("<f8", (1, 2**20, 2**20))}),
    "inputs": lambda: members({"trees/0/inputs.npy": npy("<i8", (25_000_000,), bytes(200_000_000))}),
    "phases": lambda: members({"trees/0/phases.npy": npy("|i1", (70_000_000, 3), bytes(210_000_000))}),
    "text": lambda: members({"claim.json": b'{"format": [' + b"[]," * 60_000_000 + b"0]}"}),
    "a part that is large": lambda: members({"image.npy": npy("<f8", (1, 1, 40_000_000), bytes(320_000_000))}),
    "a part larger than it says": lambda: lying(1000, 3 * GIB // 2),
    "a list of parts": lambda: long_directory(2_000_000),
    "many top pixels": lambda: certificate(network(90, 1), top=4050),
}

EXACT: Mapping[str, Callable[[], bytes | Certificate]] = {"units in fractions": lambda: of_units(700)}


def main() -> None:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    made = {**FORGED, **EXACT}[name]()
    path = folder / "forged.cert"
    path.write_bytes(made if isinstance(made, bytes) else made.to_bytes())
    net = network(90, 1) if name == "many top pixels" else network(50)
    del made
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + GIB, used + GIB))
    try:
        check(Certificate.load(path), net, exact=name in EXACT)
        said = ["nothing", ""]
    except CorgiError as error:
        said = [type(error).__name__, str(error)]
    print(json.dumps([path.stat().st_size, *said]))


if __name__ == "__main__":
    main()
