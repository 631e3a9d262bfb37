"""Certificates of small questions, each checked as it was made, for tests to look at and to forge."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import pytest
from small_questions import SmallQuestion, known_questions

import corgi_opt as co
from corgi_opt.answering.prover import plain_network
from corgi_opt.errors import ProofError
from corgi_opt.proof.certificate import Certificate
from corgi_opt.proof.checker import check
from corgi_opt.proof.network import Network
from corgi_opt.proof.statement import TopPixels

COUNT = 90


@dataclass(frozen=True, eq=False)
class Case:
    asked: SmallQuestion
    net: co.CamNetwork
    network: Network
    verdict: co.Verdict

    @functools.cached_property
    def stable(self) -> bool | None:
        """By enumeration."""
        return self.asked.answer().stable

    @property
    def certificate(self) -> Certificate:
        return self.verdict.certificate

    @property
    def top(self) -> TopPixels:
        """What is claimed, as files of older versions have it."""
        cam, class_idx = self.net.cam(self.asked.x, self.verdict.asked.class_idx), self.verdict.asked.class_idx
        top = sorted(cam.flatten().topk(self.asked.k).indices.tolist())
        return TopPixels(class_idx, tuple(top), self.asked.k if self.asked.within is None else self.asked.within)

    def claiming(self, **changes: Any) -> Certificate:
        """The certificate, for another claim about top pixels."""
        return with_claim(self.certificate, says=replace(self.top, **changes))


@functools.cache
def cases() -> tuple[Case, ...]:
    """Questions that keep no class, each answered by branch and bound and checked at once."""
    found = []
    for question in known_questions(COUNT, seed=11):
        asked = replace(question, keep_class=False)
        net = asked.network
        verdict = co.verify(net, asked.x, method="bab", proof="checked", **asked.arguments)
        found.append(Case(asked, net, plain_network(net), verdict))
    return tuple(found)


def of_kind(kind: str, trees: bool = False) -> list[Case]:
    found = [c for c in cases() if c.verdict.proof == "checked" and c.verdict.status == kind]
    return [c for c in found if not trees or c.certificate.trees]


def rejected(certificate: Certificate, network: Network) -> str:
    with pytest.raises(ProofError) as caught:
        check(certificate, network)
    return str(caught.value)


def with_claim(certificate: Certificate, **changes: Any) -> Certificate:
    return replace(certificate, claim=replace(certificate.claim, **changes))


def with_region(certificate: Certificate, **changes: Any) -> Certificate:
    return with_claim(certificate, region=replace(certificate.claim.region, **changes))
