"""What ordinary clients ask, learnt from a log of them and tried on others of the same log."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardening.clients.evidence import CAUTION, Bettors, Rows, log_evidence, octave, scores
from hardening.clients.log import Log
from hardening.clients.means import LEAST_CLIENTS, LEAST_DISPERSION, dispersion, means, settle
from hardening.clients.window import Tried, Window, bounds, interval, try_on, windows
from hardening.errors import ConfigError
from hardening.kernels.layout import EXPECTED, HISTOGRAM_BINS, LABEL_BINS, LANES, OCTAVES, THRESHOLDS, Lane

SCHEMA = 2
#: Quantiles of ordinary rows with a label: entropies that divide them (see `layout.HARD`), and the margin below which a
#: row counts as unusual; and the fewest such rows, below which those of all labels are taken.
EDGES, MARGIN = (0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.98), 0.05
LEAST_LABELLED = 200
#: Clients with fewer rows than this are left out.
LEAST_ROWS = 32
#: By how many standard deviations of a row a bettor expects somebody's questions to be harder than ordinary ones.
HOPE = 0.4
#: No mean in a file is smaller; the bets would be beyond what a number can hold.
FEWEST = 1e-6


@dataclass(frozen=True)
class HeldOut:
    """The baseline tried on clients that it was not made of.

    Attributes:
        clients: how many.
        outside: how many of them seem to be above the baseline's means, on average over all their rows, in some lane.
        evidence: the most evidence (a logarithm) that each of them ever reached, largest first.
    """

    clients: int
    outside: int
    evidence: tuple[float, ...]

    def flagged(self, false_alarm: float) -> int:
        """How many would have been flagged."""
        return sum(e >= -math.log(false_alarm) for e in self.evidence)

    def share_outside(self, confidence: float = 0.95) -> tuple[float, float]:
        """Confidence interval of the share of ordinary clients that are outside the null."""
        return interval(self.outside, self.clients, confidence)


@dataclass(frozen=True)
class Baseline:
    """What ordinary clients of one output ask.

    Attributes:
        output: name of the output whose rows these are.
        clients, rows: how many clients it was made of, and how many rows they asked for the first time.
        thresholds: for each bin of labels, seven entropies (bits, by `EDGES`), and the margin below which a row
            is unusual.
        means: ``(OCTAVES, LANES)``, what the mean score of nearly every ordinary client stays below.
        average, spread: ``(LANES,)``, mean and standard deviation of clients' mean scores.
        dispersion: ``(LANES,)``, variance of a client's scores as a share of what a coin with their mean would have.
        histogram: ordinary rows by entropy in eighths of the largest possible, as shares.
        quantile: share of clients that each mean was chosen to hold.
        held_out: how it did on others.
        window: what a client's questions are like, a hundred at a time; None if no client asked so many.
        classes: width of the rows, or 0 if whoever made it did not say.
    """

    output: str
    clients: int
    rows: int
    thresholds: tuple[tuple[float, ...], ...]
    means: tuple[tuple[float, ...], ...]
    average: tuple[float, ...]
    spread: tuple[float, ...]
    histogram: tuple[float, ...]
    quantile: float
    held_out: HeldOut
    dispersion: tuple[float, ...] = (1.0,) * LANES
    window: Window | None = None
    classes: int = 0

    def numbers(self) -> NDArray[np.float64]:
        """The baseline as kernels read it; see `Job.BASELINE`."""
        mu = np.array(self.means)
        free = mu >= 1
        variance = np.where(free, 1.0, mu * (1 - mu) * np.array(self.dispersion))
        sets = np.stack([mu, np.where(free, 0, 1 / variance), np.where(free, 0, CAUTION / mu)], axis=1)
        expected = np.where(np.arange(LANES) == Lane.HIGH, HOPE * np.sqrt(variance[-1]), 0) * ~free[-1]
        window = np.zeros((2, LANES)) if self.window is None else (self.window.average, 1 / np.array(self.window.reach))
        parts: tuple[Any, ...] = (self.thresholds, sets, expected, window)
        return np.concatenate([np.ravel(part) for part in parts])

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA} | asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, path: str = "baseline") -> Baseline:
        """Read what `to_json` wrote. Raises ConfigError at `path` for anything else."""
        try:
            facts = json.loads(text)
            if facts.pop("schema") != SCHEMA:
                raise ConfigError(path, f"is of another schema than {SCHEMA}: run hardening calibrate again")
            held, window = facts.pop("held_out"), facts.pop("window")
            facts = {k: _frozen(v) for k, v in facts.items()}
            made = cls(
                held_out=HeldOut(**{k: _frozen(v) for k, v in held.items()}), window=window and _window(window), **facts
            )
            mu, varies = np.array(made.means, np.float64), np.array(made.dispersion, np.float64)
            lists = (made.thresholds, made.average, made.spread, made.histogram, made.dispersion)
            shapes = [np.array(values, np.float64).shape for values in lists]
            few = min(made.clients, made.rows) < 1 or made.classes < 0
            reach = np.array([] if made.window is None else (made.window.average, made.window.reach), np.float64)
        except ConfigError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ConfigError(path, "is not a baseline that hardening calibrate wrote") from None
        if mu.shape != (OCTAVES, LANES) or not ((mu >= FEWEST) & (mu <= 1)).all():
            raise ConfigError(path, f"its means must be {OCTAVES} times {LANES} numbers from {FEWEST:g} to 1")
        if shapes != [(LABEL_BINS, len(EDGES) + 1), (LANES,), (LANES,), (HISTOGRAM_BINS,), (LANES,)] or few:
            raise ConfigError(path, "has lists of the wrong length, or no clients")
        if not ((varies >= LEAST_DISPERSION) & (varies <= 1)).all():
            raise ConfigError(path, f"its dispersions must be from {LEAST_DISPERSION:g} to 1")
        if made.window is not None and not (reach.shape == (2, LANES) and (reach >= 0).all() and reach[1].all()):
            raise ConfigError(path, f"its window must have {LANES} averages and as many reaches, which are positive")
        if (mu[0, [Lane.COLLAPSE, Lane.DIVERSE]] < 1).any():
            raise ConfigError(path, "the first row of a client has no label before it to be held against")
        return made

    @classmethod
    def read(cls, file: Path, outputs: Collection[str], path: str = "baseline") -> Baseline:
        """The baseline in a `file`, of one of these `outputs`. Raises ConfigError at `path`."""
        try:
            text = file.read_text("utf-8")
        except OSError as problem:
            hint = "; hardening calibrate writes one" if isinstance(problem, FileNotFoundError) else ""
            raise ConfigError(path, f"cannot read {file.name!r}: {problem.strerror}{hint}") from None
        except UnicodeDecodeError:
            raise ConfigError(path, f"cannot read {file.name!r}: it is not text in UTF-8") from None
        made = cls.from_json(text, path)
        if made.output not in outputs:
            known = ", ".join(outputs)
            raise ConfigError(
                path,
                f"{file.name!r} is of the output {made.output!r}, which the policy does not name; its outputs: {known}"
                if made.output
                else f"{file.name!r} does not say which output it is of: hardening calibrate --output NAME, of {known}",
            )
        return made


def _window(facts: dict[str, Any]) -> Window:
    held = facts.pop("tried")
    return Window(tried=Tried(**held), **{k: _frozen(v) for k, v in facts.items()})


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _held_out(client: str) -> bool:
    """Half of the clients, chosen by their names, so that the same log gives the same baseline."""
    return hashlib.blake2b(client.encode(), digest_size=1).digest()[0] % 2 == 1


def calibrate(logs: Mapping[str, Log], output: str = "", quantile: float = 0.999, classes: int = 0) -> Baseline:
    """The baseline of ordinary clients, from what they asked (by client), for an `output` of so many `classes`.

    Half of the clients make it, the others test it. Clients of fewer than `LEAST_ROWS` rows asked for the first time
    are left out. Every mean is the `quantile` of the clients' own, without what is sampling noise in their spread, and
    one standard error more.

    Raises ConfigError if there are too few clients.
    """
    traced = {client: log.firsts() for client, log in sorted(logs.items())}
    used = {client: rows for client, rows in traced.items() if len(rows.entropy) >= LEAST_ROWS}
    fit = [rows for client, rows in used.items() if not _held_out(client)]
    others = [rows for client, rows in used.items() if _held_out(client)]
    if min(len(fit), len(others)) < LEAST_CLIENTS:
        raise ConfigError(
            "log",
            f"has {len(used)} clients with at least {LEAST_ROWS} different questions, of {len(logs)} in all, "
            f"{len(fit)} to calibrate by and {len(others)} to try it on; {LEAST_CLIENTS} of each are "
            "needed: log more clients, or for longer",
        )
    thresholds = _thresholds(fit)
    scored = [scores(np.ravel(thresholds), rows) for rows in fit]
    _, spread = settle(scored)
    histograms = np.array([log.histogram() for client, log in logs.items() if client in used and not _held_out(client)])
    made = Baseline(
        output,
        len(fit),
        sum(map(len, scored)),
        thresholds,
        tuple(map(tuple, means(scored, quantile).tolist())),
        tuple(np.mean([s.mean(axis=0) for s in scored], axis=0).tolist()),
        tuple(spread.tolist()),
        tuple((histograms / histograms.sum(axis=1, keepdims=True)).mean(axis=0).tolist()),
        quantile,
        HeldOut(0, 0, ()),
        tuple(dispersion(scored).tolist()),
        bounds([windows(s) for s in scored]),
        classes=classes,
    )
    return _try(made, [scores(made.numbers(), rows) for rows in others])


def _thresholds(fit: list[Rows]) -> tuple[tuple[float, ...], ...]:
    """Quantiles of rows by label, every client counting alike."""
    entropy, margin, label = (
        np.concatenate([getattr(r, name) for r in fit]) for name in ("entropy", "margin", "label")
    )
    weights = np.concatenate([np.full(len(r.entropy), 1 / len(r.entropy)) for r in fit])

    def quantiles(own: NDArray[np.bool_]) -> tuple[float, ...]:
        edges = _weighted(entropy[own], weights[own], EDGES)
        return *edges, *_weighted(margin[own], weights[own], (MARGIN,))

    found = np.bincount(label % LABEL_BINS, minlength=LABEL_BINS)
    whole = quantiles(np.ones(len(label), bool))
    return tuple(
        quantiles(label % LABEL_BINS == bin_) if found[bin_] >= LEAST_LABELLED else whole for bin_ in range(LABEL_BINS)
    )


def _weighted(values: NDArray[np.float64], weights: NDArray[np.float64], q: tuple[float, ...]) -> list[float]:
    """Quantiles of weighted values."""
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weights[order])
    places = np.minimum(np.searchsorted(below, np.array(q) * below[-1]), len(order) - 1)
    return [float(v) for v in values[order][places]]


def _try(baseline: Baseline, scored: list[NDArray[np.float64]]) -> Baseline:
    """The baseline with how it did on others, whose scores ``(rows, LANES)`` these are."""
    numbers = baseline.numbers()
    mean = numbers[THRESHOLDS:EXPECTED].reshape(OCTAVES, 3, LANES)[:, 0]
    above = []
    for s in scored:
        mu = mean[octave(np.arange(len(s)))]
        above.append(np.where(mu < 1, s - mu, 0))
    settled, _ = settle(above)
    # Clients of unlike lengths in step: who has no rows left keeps what it has.
    bettors, highest = Bettors.new(len(scored)), np.full(len(scored), -math.inf)
    order = np.argsort([-len(s) for s in scored], kind="stable")
    lengths = np.array([len(scored[i]) for i in order])
    for t in range(int(lengths.max(initial=0))):
        left = int((lengths > t).sum())
        bettors = bettors.first(left).after(numbers, np.array([scored[i][t] for i in order[:left]]))
        highest[:left] = np.maximum(highest[:left], log_evidence(bettors.wealth, bettors.restarts))
    most = tuple(sorted(highest.tolist(), reverse=True))
    held = HeldOut(len(scored), int((settled > 0).any(axis=1).sum()), most)
    usual = baseline.window
    if usual is not None:
        usual = replace(usual, tried=try_on(usual, [windows(s) for s in scored]))
    return replace(baseline, held_out=held, window=usual)
