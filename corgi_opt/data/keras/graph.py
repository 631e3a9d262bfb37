"""A model's configuration as calls in order: which layer reads what, nested models and shared layers unfolded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from corgi_opt.errors import InputError, UnsupportedOpError

MOST_CALLS = 10_000
MOST_DEPTH = 16

MODELS = frozenset(("Sequential", "Functional", "Model"))

_OWN = frozenset(("keras", "tf_keras", "keras_core", "tensorflow"))


@dataclass(frozen=True)
class Entry:
    """A layer of a configuration. ``nodes``: what it reads in each of its calls. ``names``: its name, after those of
    the models that it is nested in. ``slots``: its class and how many of it come before, as the .keras layout counts
    layers, likewise."""

    kind: str
    config: Any
    nodes: Any
    names: tuple[str, ...]
    slots: tuple[tuple[str, int], ...]

    @property
    def path(self) -> str:
        return "/".join(self.names)


@dataclass(frozen=True)
class Call:
    """One use of a layer: ``reads`` are values, 0 the image, i what call i - 1 gives."""

    entry: Entry
    reads: tuple[int, ...]


@dataclass
class Plan:
    """``size``: (rows, columns, channels) or (steps, channels) of the image, None where they are left open.
    ``major``: the version of Keras."""

    size: tuple[int | None, ...]
    major: int
    calls: list[Call] = field(default_factory=list)
    output: int = 0

    def call(self, entry: Entry, reads: Sequence[int]) -> int:
        if len(self.calls) >= MOST_CALLS:
            raise InputError(f"it calls more than {MOST_CALLS:,} layers")
        self.calls.append(Call(entry, tuple(reads)))
        return len(self.calls)


def plan_of(config: Any, major: int) -> Plan:
    """Raises InputError for a configuration that is none, UnsupportedOpError for what is not read."""
    entry = _entry(config, (), {}, named=False)
    if entry.kind not in MODELS:
        raise InputError(f"it is a Keras {entry.kind} model; only Sequential and functional models are read")
    plan = Plan(_input_size(entry), major)
    plan.output = _expand(plan, entry, 0, 0)
    return plan


def _entry(raw: Any, above: tuple[Entry, ...], used: dict[str, int], *, named: bool = True) -> Entry:
    """One layer as it is written; ``used`` counts the slots of its model."""
    match raw:
        case {"class_name": str(kind), "config": (dict() | list()) as config}:
            pass
        case _:
            raise InputError(f"a layer of its configuration has no class_name or no config: {str(raw)[:80]}")
    name = config.get("name", raw.get("name")) if isinstance(config, Mapping) else raw.get("name")
    if named and (not isinstance(name, str) or not name):
        raise InputError(f"a layer of its configuration has no name: {str(raw)[:80]}")
    slot = _snake_case(kind)
    used[slot] = used.get(slot, -1) + 1
    outer = above[-1] if above else None
    names = (*(outer.names if outer else ()), str(name)) if named else ()
    slots = (*(outer.slots if outer else ()), (slot, used[slot])) if named else ()
    _require_own(raw, kind, "/".join(names) or "the model")
    return Entry(kind, config, raw.get("inbound_nodes"), names, slots)


def _require_own(raw: Mapping[str, Any], kind: str, path: str) -> None:
    """Raises UnsupportedOpError for what is no layer of Keras's own, whatever its class is called."""
    module, registered = raw.get("module"), raw.get("registered_name")
    parts = str(module).split(".") if module is not None else ["keras"]
    if parts[0] in _OWN and "ops" in parts:
        raise UnsupportedOpError(
            f"Keras layer {path!r}", f"{kind} of keras.ops", "Write the step as a layer of Keras's own."
        )
    if parts[0] not in _OWN or (registered is not None and registered != kind):
        raise UnsupportedOpError(
            f"Keras layer {path!r}",
            f"{kind} of {registered or module!r}",
            "It is a class of somebody's own, and no code but Keras's layers is known here.",
        )


def _snake_case(kind: str) -> str:
    """As Keras's naming.to_snake_case."""
    plain = re.sub(r"\W+", "", kind)
    plain = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", plain)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", plain).lower()


def _layers(entry: Entry) -> list[Entry]:
    """The layers of a model as they are written. Raises InputError where they are none, or two bear one name."""
    config = entry.config
    found = config.get("layers") if isinstance(config, Mapping) else config  # a list, in Keras 2.2 and before
    if not isinstance(found, list) or not found:
        raise InputError(f"the {entry.kind} model {entry.path or ''!r} lists no layers")
    if len(found) > MOST_CALLS:
        raise InputError(f"it has more than {MOST_CALLS:,} layers")
    used: dict[str, int] = {}
    made = [_entry(raw, (entry,), used) for raw in found]
    names = [e.names[-1] for e in made]
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise InputError(f"two layers of its configuration are called {twice!r}")
    return made


def _input_size(entry: Entry) -> tuple[int | None, ...]:
    """The size of the image that a model reads."""
    depth, config = 0, entry.config
    while entry.kind in MODELS and depth <= MOST_DEPTH:
        config, depth = entry.config, depth + 1
        inside = _layers(entry)
        entry = inside[0] if entry.kind == "Sequential" else _input_layer(entry, inside)
    own = entry.config if isinstance(entry.config, Mapping) else {}
    outer = config if isinstance(config, Mapping) else {}
    shape = own.get("batch_shape", own.get("batch_input_shape", outer.get("build_input_shape")))
    match shape:
        case [_, (int() | None) as height, (int() | None) as width, int(channels)]:
            size: tuple[int | None, ...] = (height, width, channels)
        case [_, (int() | None) as steps, int(channels)]:
            size = (steps, channels)
        case _:
            raise InputError(f"its input shape {str(shape)[:80]} is not [batch, height, width, channels]")
    if any(s is not None and not 0 < s < 1 << 31 for s in size):
        raise InputError(f"its input shape {shape} is not [batch, height, width, channels]")
    return size


def _input_layer(model: Entry, inside: Sequence[Entry]) -> Entry:
    """The one input layer of a functional model."""
    ends = _ends(model, "input_layers")
    if len(ends) != 1:
        raise InputError(f"the model {model.path!r} reads {len(ends)} inputs; only models of one image are read")
    found = [e for e in inside if e.names[-1] == ends[0][0]]
    if len(found) != 1 or found[0].kind != "InputLayer":
        raise InputError(f"its input {ends[0][0]!r} is none of its layers")
    return found[0]


def _ends(model: Entry, key: str) -> list[tuple[str, int]]:
    """The (layer, node) pairs of ``input_layers`` or ``output_layers``: a list of them, or the only one."""
    found = model.config.get(key) if isinstance(model.config, Mapping) else None
    if isinstance(found, Mapping):
        found = list(found.values())
    if isinstance(found, list) and found and isinstance(found[0], str):
        found = [found]
    if not isinstance(found, list) or not found:
        raise InputError(f"the {model.kind} model {model.path or ''!r} does not say its {key}")
    return [_reference(each) for each in found]


def _reference(raw: Any) -> tuple[str, int]:
    match raw:
        case [str(name), int(node), 0, *_]:
            return name, node
    raise InputError(f"{str(raw)[:80]} is no output of a layer")


def _expand(plan: Plan, model: Entry, value: int, depth: int) -> int:
    """Adds the calls of a model that reads ``value``, and returns the value that it gives."""
    if depth > MOST_DEPTH:
        raise InputError(f"its models are nested deeper than {MOST_DEPTH}")
    inside = _layers(model)
    if model.kind == "Sequential":
        for entry in inside:
            value = _use(plan, entry, [value], depth)
        return value
    return _expand_graph(plan, model, inside, value, depth)


def _use(plan: Plan, entry: Entry, reads: list[int], depth: int) -> int:
    if entry.kind == "InputLayer":
        return reads[0]
    if entry.kind in MODELS:
        if len(reads) != 1:
            raise InputError(f"the model {entry.path!r} reads {len(reads)} inputs; only models of one are read")
        return _expand(plan, entry, reads[0], depth + 1)
    return plan.call(entry, reads)


def _expand_graph(plan: Plan, model: Entry, inside: Sequence[Entry], value: int, depth: int) -> int:
    by_name = {e.names[-1]: e for e in inside}
    first = _input_layer(model, inside).names[-1]
    ends = _ends(model, "output_layers")
    first_call = _first_calls(inside, ends) if plan.major < 3 else {}
    if len(ends) != 1:
        raise InputError(f"the model {model.path!r} has {len(ends)} outputs; only models of one are read")
    known: dict[tuple[str, int], int] = {(first, 0): value}
    open_now: set[tuple[str, int]] = set()
    pending = [ends[0]]
    while pending:  # no recursion: a network may be a thousand layers deep
        node = pending[-1]
        if node in known:
            pending.pop()
            continue
        entry = by_name.get(node[0])
        if entry is None:
            raise InputError(f"it reads the layer {node[0]!r}, which its configuration does not list")
        reads = _reads(entry, node[1] - first_call.get(node[0], 0))
        missing = [r for r in reads if r not in known]
        if missing:
            if node in open_now or len(pending) > 2 * MOST_CALLS:
                raise InputError(f"Keras layer {entry.path!r} reads what it gives: the graph goes in a circle")
            open_now.add(node)
            pending.extend(reversed(missing))
            continue
        known[node] = _use(plan, entry, [known[r] for r in reads], depth)
        pending.pop()
    return known[ends[0]]


def _first_calls(inside: Sequence[Entry], ends: Sequence[tuple[str, int]]) -> dict[str, int]:
    """The number of the first call of nested models. Keras 2 counts from 1 where call 0 is the one that made the model,
    which is not written down."""
    models = {e.names[-1] for e in inside if e.kind in MODELS}
    if not models:
        return {}
    read = {r for e in inside for at in range(len(e.nodes) if isinstance(e.nodes, list) else 0) for r in _reads(e, at)}
    return {name: 0 if (name, 0) in read.union(ends) else 1 for name in models}


def _reads(entry: Entry, node: int) -> list[tuple[str, int]]:
    """What a layer reads in its call number ``node``."""
    nodes = entry.nodes
    if not isinstance(nodes, list) or not 0 <= node < len(nodes):
        raise InputError(f"Keras layer {entry.path!r} has no call number {node}")
    raw = nodes[node]
    if isinstance(raw, Mapping):  # Keras 3
        _require_inference(entry, raw.get("kwargs", {}))
        found = list(_tensors(entry, raw.get("args"), 0))
    elif isinstance(raw, list):
        found = []
        for each in raw:
            if isinstance(each, list) and len(each) > 3:
                _require_inference(entry, each[3])
            found.append(_reference(each))
    else:
        found = []
    if not found:
        raise InputError(f"Keras layer {entry.path!r} reads nothing that is known here")
    return found


def _tensors(entry: Entry, args: Any, depth: int) -> Iterator[tuple[str, int]]:
    match args:
        case {"class_name": "__keras_tensor__", "config": {"keras_history": history}}:
            yield _reference(history)
        case list() if depth < 3:
            for each in args:
                yield from _tensors(entry, each, depth + 1)
        case _:
            raise UnsupportedOpError(
                f"Keras layer {entry.path!r}",
                f"{entry.kind} called on {str(args)[:80]}",
                "Only calls on maps are read.",
            )


def _require_inference(entry: Entry, given: Any) -> None:
    """Raises UnsupportedOpError for arguments of a call that change what it computes."""
    for key, value in given.items() if isinstance(given, Mapping) else [("arguments", given)]:
        if value is None or (key == "training" and value is False) or (key == "arguments" and value == {}):
            continue
        raise UnsupportedOpError(
            f"Keras layer {entry.path!r}",
            f"{entry.kind} called with {key}={str(value)[:80]}",
            "What it computes then is another thing than in inference.",
        )
