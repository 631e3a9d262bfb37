"""A property at one image as numbers: parts of maps and logits, atoms made of parts, groups of atoms.

A *part* is one number of the network: ``head . A_p``, a head vector times the last feature map at a pixel, or a logit
(the mean of that over the map, plus the bias). An *atom* is a linear statement ``sum of coef * part > 0``. A *group*
holds at an image when at least ``need`` of its atoms are positive there; its margin is the need-th largest of them, and
the margin of all is the smallest over the groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from corgi_opt.errors import InputError
from corgi_opt.network.names import in_words, name_of

MEAN = -1
"""The ``place`` of a logit, which is the mean over the whole map plus the bias."""


@dataclass(frozen=True, eq=False)
class Parts:
    """F parts. ``heads`` (D, classes) float64: head vectors, each a class's row of weights, or the sum or difference of
    two (so of 1, -1 and 0: computing one takes a single rounding). ``head`` (F,): the head vector of each part;
    ``place`` (F,): its flat pixel, or MEAN. Raises InputError for other head vectors.
    """

    heads: Tensor
    head: Tensor
    place: Tensor

    def __post_init__(self) -> None:
        size = self.heads.abs()
        if not bool(((size == 0) | (size == 1)).all()) or bool((size.sum(dim=1) > 2).any()):
            raise InputError("a head vector must be a class's row of weights, or the sum or difference of two")

    def __len__(self) -> int:
        return len(self.head)

    @cached_property
    def whole(self) -> Tensor:
        """Which parts (F,) are logits."""
        return self.place == MEAN

    def vectors(self, weight: Tensor) -> Tensor:
        """The head vectors (D, C), from the rows of weights (classes, C)."""
        return self.heads.to(weight) @ weight

    def shifts(self, bias: Tensor) -> Tensor:
        """What the bias (classes,) adds to every part (F,)."""
        shift = (self.heads.to(bias) @ bias)[self.head]
        return torch.where(self.whole.to(shift.device), shift, torch.zeros_like(shift))

    def values(self, features: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
        """The parts (N, F) of last feature maps (N, C, H, W) and their logits (N, classes)."""
        vectors = self.vectors(weight.to(features))
        values = features.new_zeros(len(features), len(self))
        for at, mine in self._by_head:
            cams = torch.einsum("c,nchw->nhw", vectors[at], features).flatten(1)
            values = values.index_copy(1, mine.to(values.device), cams[:, self.place[mine]])
        if bool(self.whole.any()):
            mine = torch.nonzero(self.whole).flatten()
            scores = logits.to(features) @ self.heads.to(features).T
            values = values.index_copy(1, mine.to(values.device), scores[:, self.head[mine]])
        return values

    @cached_property
    def _by_head(self) -> list[tuple[int, Tensor]]:
        """The head vectors of pixels, each with the parts that have it."""
        heads = torch.unique(self.head[~self.whole]).tolist()
        return [(at, torch.nonzero((self.head == at) & ~self.whole).flatten()) for at in heads]


def cam_pixels(classes: int, class_idx: int, pixels: int) -> Parts:
    """Every pixel of the CAM of a class."""
    head = torch.zeros(1, classes, dtype=torch.float64)
    head[0, class_idx] = 1.0
    return Parts(head, torch.zeros(pixels, dtype=torch.long), torch.arange(pixels))


@dataclass(frozen=True, eq=False)
class Groups:
    """A atoms in G groups.

    ``terms`` (A, T): the parts of each atom, all at different pixels, or one logit alone (two parts at one place are
    one part, of another head vector); ``coefs`` (A, T) float64 (0 where an atom has fewer). ``members`` (G, S): the
    atoms of each group (-1 where it has fewer), every atom in one group; ``need`` (G,): how many have to be positive.
    ``anchors`` (B, 2): parts of which the first is larger at the image. They tie the atoms to what they are said to be
    about ("the brightest pixels") where the atoms alone do not. ``labels`` (A, 2): the two ``things`` (their name in
    the singular and in the plural) that an atom compares; it is positive while the first is ahead of the second.
    ``names``: of the things, where they have any.
    """

    parts: Parts
    terms: Tensor
    coefs: Tensor
    members: Tensor
    need: Tensor
    anchors: Tensor
    labels: Tensor
    things: tuple[str, str]
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises InputError where there are no atoms, and for an atom with several parts at one place: bounds would not
        account for their rounding."""
        if not len(self.terms):
            raise InputError("the property says nothing about this image: it has no atoms there")
        used = self.coefs != 0
        spare = -2 - torch.arange(self.terms.shape[1])  # a place of its own for what is not used
        places = torch.where(used, self.parts.place[self.terms], spare).sort(dim=1).values
        twice = (places[:, 1:] == places[:, :-1]).any(dim=1)
        beside = (places == MEAN).any(dim=1) & (used.sum(dim=1) > 1)
        if bool((twice | beside).any()):
            raise InputError(
                "the parts of an atom must be at different pixels, or one logit: combine those at one place in a head"
            )

    def __len__(self) -> int:
        """How many atoms there are."""
        return len(self.terms)

    @cached_property
    def sizes(self) -> Tensor:
        """How many atoms each group has (G,)."""
        return (self.members >= 0).sum(dim=1)

    @cached_property
    def enough(self) -> Tensor:
        """How many atoms of each group must fail for the group to fail (G,)."""
        return self.sizes - self.need + 1

    @cached_property
    def every(self) -> bool:
        """Whether a single atom that fails is enough."""
        return bool((self.enough == 1).all())

    @cached_property
    def group(self) -> Tensor:
        """The group of each atom (A,)."""
        group = torch.zeros(len(self), dtype=torch.long)
        row, column = torch.nonzero(self.members >= 0, as_tuple=True)
        group[self.members[row, column]] = row
        return group

    def atoms_of(self, group: int) -> Tensor:
        """The atoms (S,) of one group."""
        return self.members[group, : int(self.sizes[group])]

    def atoms(self, values: Tensor) -> Tensor:
        """The atoms (..., A) of parts (..., F)."""
        coefs = self.coefs.to(values)
        atoms = coefs[:, 0] * values[..., self.terms[:, 0]]
        for term in range(1, self.terms.shape[1]):
            atoms = atoms + coefs[:, term] * values[..., self.terms[:, term]]
        return atoms

    def of_rows(self, values: Tensor, atoms: Tensor) -> Tensor:
        """The values (N, S) of ``atoms`` (N, S), each row of its own row of parts (N, F)."""
        terms, coefs = self.terms[atoms].to(values.device), self.coefs[atoms].to(values)
        return (coefs * values.gather(1, terms.flatten(1)).view_as(coefs)).sum(dim=2)

    def slack(self, atoms: Tensor) -> Tensor:
        """The margin (..., G) of each group, of atoms (..., A) or of lower bounds on them: the need-th largest."""
        count, size = self.members.shape
        if size == 1:
            return atoms[..., self.members[:, 0]]
        held = atoms[..., self.members.clamp(min=0)]
        held = held.masked_fill((self.members < 0).to(held.device), -torch.inf)
        if bool((self.need == self.need[0]).all()):
            return held.kthvalue(size - int(self.need[0]) + 1, dim=-1).values
        place = (self.need - 1).to(held.device).view(count, 1).expand(*held.shape[:-1], 1)
        return held.sort(dim=-1, descending=True).values.gather(-1, place)[..., 0]

    def margin(self, atoms: Tensor) -> Tensor:
        """The smallest margin (...) over the groups, of atoms (..., A)."""
        return self.slack(atoms).amin(dim=-1)

    def worst(self, atoms: Tensor) -> int:
        """The atom that the margin of atoms (A,) is about."""
        mine = self.atoms_of(int(self.slack(atoms).argmin()))
        order = atoms[mine].argsort(stable=True)
        return int(mine[order[len(mine) - int(self.need[self.group[mine[0]]])]])

    def least(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The least that each atom (..., A) can be for parts between ``low`` and ``high`` (..., F), and the sum of that
        value's absolute terms (..., A). An atom may be NaN where bounds are infinite."""
        least = low.new_zeros(*low.shape[:-1], len(self))
        size = torch.zeros_like(least)
        for term, coef in zip(self.terms.T, self.coefs.to(low).T, strict=True):
            side = torch.where(coef > 0, low[..., term], high[..., term])
            share = torch.where(coef == 0, torch.zeros_like(side), coef * side)
            least, size = least + share, size + share.abs()
        return least, size

    @cached_property
    def differences(self) -> bool:
        """Whether every atom is a part or the sum or difference of two: one rounding, and none of products."""
        return self.terms.shape[1] <= 2 and bool(((self.coefs.abs() == 1) | (self.coefs == 0)).all())

    def sides_of(self, marked: Tensor) -> tuple[Tensor, Tensor]:
        """The parts (..., F) whose lower bounds the marked atoms (..., A) need, and those whose upper bounds."""
        # counts, not flags: several atoms have a part in common
        counts = [torch.zeros(*marked.shape[:-1], len(self.parts), dtype=torch.int32) for _ in range(2)]
        for term, coef in zip(self.terms.T, self.coefs.T, strict=True):
            for count, asked in zip(counts, (coef > 0, coef < 0), strict=True):
                count.index_add_(-1, term, (marked & asked).int())
        return counts[0] > 0, counts[1] > 0

    def among(self, parts: Tensor) -> Tensor:
        """Which atoms (A,) are made of these parts alone."""
        known = torch.zeros(len(self.parts), dtype=torch.bool)
        known[parts] = True
        return (known[self.terms] | (self.coefs == 0)).all(dim=1)

    def named(self, atom: int) -> str:
        """What an atom compares, for a message."""
        first, second = map(self.said, self.labels[atom].tolist())
        return f"{self.things[1]} {first} and {second}"

    def named_group(self, group: int) -> str:
        """What a group is about, for a message."""
        mine = self.atoms_of(group)
        first = self.labels[mine, 0].unique()
        return self.named(int(mine[0])) if len(mine) == 1 else f"{self.things[0]} {self.said(int(first[0]))}"

    def said(self, label: int) -> str:
        """A thing by its number, and its name where it has one."""
        return in_words(label, name_of(label, self.names))

    def what_changed(self, atom: int, atoms: Tensor) -> str:
        """How an atom fails, in words; ``atoms`` (A,) at the image."""
        first, second = map(self.said, self.labels[atom].tolist())
        thing, things = self.things
        said = f"{thing} {second} {'passes' if float(atoms[atom]) < 0 else 'ties with'} {thing} {first}"
        mine = self.atoms_of(int(self.group[atom]))
        if int(self.enough[self.group[atom]]) == 1:
            return said
        return f"{said}, which {int((atoms[mine] <= 0).sum())} {things} equal or exceed"


def alone(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """``members``, ``need`` and ``anchors`` of atoms that each have to hold."""
    return torch.arange(count)[:, None], torch.ones(count, dtype=torch.long), torch.zeros(0, 2, dtype=torch.long)
