"""Examples of every kind of transform, and the pipelines in which tests put them into every space that takes them."""

from __future__ import annotations

from typing import Any, NamedTuple

from hardening.errors import ConfigError
from hardening.pipeline import Pipeline
from hardening.transforms import (
    TRANSFORMS,
    BoundaryRandomisedResponse,
    Canary,
    Clip,
    CoverageNoise,
    Cutoff,
    DynaNoise,
    Exponential,
    Gaussian,
    Grad2,
    KRandomisedResponse,
    LabelOnly,
    Laplace,
    Mad,
    MemGuard,
    Misinformation,
    Mld,
    Noise,
    Orthogonal,
    PermuteAndFlip,
    Project,
    RandomTarget,
    ReverseSigmoid,
    Round,
    Staircase,
    Temperature,
    TopK,
    Transform,
    Types,
)
from hardening.types import SPACES

EXAMPLES: dict[str, tuple[Transform, ...]] = {
    "round": (Round(decimals=2),),
    "types": (Types(n=20),),
    "top_k": (TopK(k=2), TopK(k=3, remainder="spread"), TopK(k=1, remainder="other", other=0)),
    "cutoff": (Cutoff(low=0.1),),
    "label_only": (LabelOnly(),),
    "clip": (Clip(low=0.05, high=0.6),),
    "temperature": (Temperature(t=0.05), Temperature(t=8.0)),
    "gaussian": (Gaussian(sigma=0.05), Gaussian(sigma=0.2, key="cell")),
    "laplace": (Laplace(scale=0.1), Laplace(scale=0.1, key="cell", scope="client")),
    "staircase": (Staircase(scale=0.2, sensitivity=0.1),),
    "project": (Project(keep_top1=True), Project()),
    "permute_and_flip": (PermuteAndFlip(epsilon=8.0), PermuteAndFlip(epsilon=8.0, key="cell", scope="client")),
    "exponential": (Exponential(epsilon=8.0),),
    "k_rr": (KRandomisedResponse(epsilon=2.0), KRandomisedResponse(epsilon=0.0)),
    "boundary_rr": (BoundaryRandomisedResponse(epsilon=0.5, margin=0.3),),
    "reverse_sigmoid": (ReverseSigmoid(beta=0.01, gamma=0.2), ReverseSigmoid(allow_flip=True)),
    "random_target": (RandomTarget(l1=0.5), RandomTarget(l1=2.0, keep_top1=False)),
    "memguard": (MemGuard(l1=0.3), MemGuard(l1=2.0)),
    "dynanoise": (DynaNoise(variance=0.3, gain=2.0, t=10.0), DynaNoise(keep_top1=False)),
    "mld": (Mld(l1=0.5), Mld(l1=2.0), Mld(l1=0.0)),
    "mad": (Mad(l1=0.5), Mad(l1=2.0), Mad(l1=0.0), Mad(l1=2.0, keep_top1=False)),
    "grad2": (Grad2(l1=0.5), Grad2(l1=2.0), Grad2(l1=0.0), Grad2(l1=2.0, keep_top1=False)),
    "misinformation": (Misinformation(tau=0.5, nu=20.0),),
    "canary": (Canary(rate=0.5),),
    "coverage_noise": (CoverageNoise(),),
    "orthogonal": (Orthogonal(),),
}


class Case(NamedTuple):
    """A transform, and the pipeline it is in: alone, or between what its space needs."""

    transform: Transform
    pipeline: Pipeline

    def __str__(self) -> str:
        return f"{self.pipeline.space}-{self.transform}"


def case(transform: Transform, space: Any) -> Case | None:
    """The shortest pipeline of this space with the transform in it; None if the space does not take it."""
    bounded, unit = Clip(low=-8.0, high=8.0), Clip(low=0.0, high=1.0)
    ends: list[tuple[Transform, ...]] = [(), (Project(keep_top1=True),), (bounded,), (unit,)]
    if space in ("sigmoid", "multilabel") and isinstance(transform, Noise):
        ends = [(unit,)]
    for before in ((), (bounded,)):
        for after in ends:
            try:
                return Case(transform, Pipeline(space, (*before, transform, *after), dense=space == "logits"))
            except ConfigError:
                continue
    return None


#: Every example in every space that takes it; where nothing has scores, nothing is hardened.
CASES = [
    found
    for kind in TRANSFORMS
    for transform in EXAMPLES.get(kind, ())
    for space in SPACES
    if space not in ("labels", "open") and (found := case(transform, space)) is not None
]
