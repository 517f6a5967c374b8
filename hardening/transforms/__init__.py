"""Transforms: frozen descriptions of what may be done to a row of scores.

Each one says which space it takes and leaves (`space_after`), what it promises (`guarantee`), how it is run (`lower`),
and what it computes, in plain numpy (`reference`): the oracle of the compiled kernel on the same draws.
"""

from __future__ import annotations

from hardening.transforms.additive import Noise
from hardening.transforms.base import Draws, Op, State, Transform
from hardening.transforms.boundary import BoundaryRandomisedResponse
from hardening.transforms.canary import Canary
from hardening.transforms.classes import Cutoff, LabelOnly, TopK
from hardening.transforms.deception import RandomTarget, ReverseSigmoid
from hardening.transforms.embedding import CoverageNoise, Orthogonal
from hardening.transforms.grid import Round, Types, types_bits
from hardening.transforms.labels import Exponential, KRandomisedResponse, LabelMechanism, PermuteAndFlip
from hardening.transforms.laws import Gaussian, Laplace, Staircase
from hardening.transforms.membership import DynaNoise, MemGuard
from hardening.transforms.perturbation import Grad2, Mad, Misinformation, Mld
from hardening.transforms.scores import Clip, Temperature
from hardening.transforms.simplex import Project

__all__ = [
    "TRANSFORMS",
    "BoundaryRandomisedResponse",
    "Canary",
    "Clip",
    "CoverageNoise",
    "Cutoff",
    "Draws",
    "DynaNoise",
    "Exponential",
    "Gaussian",
    "Grad2",
    "KRandomisedResponse",
    "LabelMechanism",
    "LabelOnly",
    "Laplace",
    "Mad",
    "MemGuard",
    "Misinformation",
    "Mld",
    "Noise",
    "Op",
    "Orthogonal",
    "PermuteAndFlip",
    "Project",
    "RandomTarget",
    "ReverseSigmoid",
    "Round",
    "Staircase",
    "State",
    "Temperature",
    "TopK",
    "Transform",
    "Types",
    "types_bits",
]

#: Every transform by its name in a policy.
TRANSFORMS: dict[str, type[Transform]] = {
    t.kind: t
    for t in (
        Round,
        Types,
        TopK,
        Cutoff,
        LabelOnly,
        Clip,
        Temperature,
        Gaussian,
        Laplace,
        Staircase,
        Project,
        PermuteAndFlip,
        Exponential,
        KRandomisedResponse,
        BoundaryRandomisedResponse,
        ReverseSigmoid,
        RandomTarget,
        MemGuard,
        DynaNoise,
        Mld,
        Mad,
        Grad2,
        Misinformation,
        Canary,
        CoverageNoise,
        Orthogonal,
    )
}
