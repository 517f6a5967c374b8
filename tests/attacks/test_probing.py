"""Searches for adversarial inputs are seen within their first hundredth; run with -s to read the figures.

Three searches as published - Square, NES, HopSkipJump - ask a small convolutional network that reads digits, through a
hardened session. `tests/oracles/test_searches.py` has those of the Adversarial Robustness Toolbox.

What is not seen: a search that is over after a few questions, because the picture was nearly another class already.
Who is flagged although he is not searching: a camera that sends frame after frame, unless ordinary clients do so too;
then less is seen of searches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from hardening.audit.extraction import wilson
from hardening.clients import fleet
from hardening.clients.baseline import interval
from hardening.clients.fingerprints import Fingerprints
from tests.attacks.pictures import ALPHA, Seen, Watch, asking, digits
from tests.attacks.searches import SEARCHES, Run, run


class Searched(NamedTuple):
    seed: int
    target: int
    run: Run


def searched(name: str, count: int, questions: int, ask: Any, seed: int = 1, **options: float) -> Iterator[Searched]:
    """So many searches, each from a different picture, each allowed so many questions."""
    of = digits()
    for i, target in enumerate(of.targets(np.random.default_rng(seed), count)):
        search = SEARCHES[name][0](
            np.random.default_rng(i), of.x[target].astype(np.float64), int(of.labels[target]), **options
        )
        yield Searched(i, int(target), run(search, ask, questions))


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return asking(digits().hardened(tmp_path_factory.mktemp("policy")), client="somebody")


def told(what: str, found: list[Seen], of: int | None = None) -> int:
    """Prints how many were seen, of so many, and how soon; how many."""
    of, after = len(found) if of is None else of, [s.after for s in found if s.after is not None]
    low, high = wilson(len(after), of)
    when = f", median {np.median(after):.0f}, latest {max(after)}" if after else ""
    print(f"  {what}: {len(after)} of {of} seen [{low:.3f}, {high:.3f}]{when}")
    return len(after)


def test_the_network_reads_digits() -> None:
    print(f"\n  accuracy on {len(digits().x)} pictures held out: {digits().accuracy:.3f}")
    assert digits().accuracy >= 0.95


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_succeed_where_nobody_watches(name: str) -> None:
    of, budget, questions = digits(), SEARCHES[name][1], []
    for _, target, (asked, found) in searched(name, 20, budget, of.scores):
        if found is not None and of.scores(found[None])[0].argmax() != of.labels[target]:
            questions.append(len(asked))
    low, high = wilson(len(questions), 20)
    print(f"\n  {name}: {len(questions)} of 20 [{low:.3f}, {high:.3f}], median question {np.median(questions):.0f}")
    assert len(questions) >= 18


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_are_seen_in_their_first_hundredth(name: str, ask: Any) -> None:
    """Or had found what they were looking for before; that takes luck, and is counted."""
    watch, found, over = Watch(digits()), [], []
    questions = SEARCHES[name][1] // 100
    for seed, _, (asked, adversarial) in searched(name, 100, questions, ask):
        seen = watch.client(asked, 1000 + seed)
        if seen.after is None and adversarial is not None:
            over.append(len(asked))
        else:
            found.append(seen)
    print()
    seen = told(f"{name}, {questions} questions", found)
    print(f"  {len(over)} others were over before, after {sorted(over)}")
    assert seen == len(found)
    assert len(found) >= 80


def flagged(count: int, seed: int) -> int:
    watch, rng = Watch(digits()), np.random.default_rng(seed)
    found = sum(watch.client(digits().browsing(rng, 60), 5000 + i).after is not None for i in range(count))
    low, high = interval(found, count)
    print(f"\n  flagged {found} of {count} ordinary users [{low:.5f}, {high:.5f}]")
    return found


def test_ordinary_users_are_not_taken_for_searchers() -> None:
    assert flagged(300, 9) == 0


@pytest.mark.deep
def test_ordinary_users_are_hardly_ever_taken_for_searchers() -> None:
    assert flagged(5000, 10) <= 5000 * ALPHA


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_are_seen_among_the_traffic_of_others(name: str, ask: Any) -> None:
    """Two hundred questions of others between any two of a search; common parts of them crowd its own out."""
    watch, found, questions = Watch(digits()), [], SEARCHES[name][1] // 100
    for seed, _, (asked, adversarial) in searched(name, 20, questions, ask):
        seen = watch.client(asked, 1000 + seed, between=200)
        if seen.after is not None or adversarial is None:
            found.append(seen)
    print()
    assert told(f"{name}, 200 questions of others between", found) >= 0.85 * len(found) >= 10


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("others", [0.5, 0.9])
def test_hiding_behind_other_pictures_costs_questions(name: str, others: float, ask: Any) -> None:
    """Half or nine tenths of what a searcher asks are pictures that nobody changed; those of the search are counted."""
    of, watch, rng, found = digits(), Watch(digits()), np.random.default_rng(5), []
    for seed, _, (asked, adversarial) in searched(name, 40, 100, ask):
        own = np.cumsum(rng.geometric(1 - others, len(asked))) - 1
        mixed = of.x[rng.integers(len(of.x), size=own[-1] + 1)]
        mixed[own] = asked
        seen = watch.client(mixed, 10_000 + seed)
        if seen.after is not None or adversarial is None:
            after = None if seen.after is None else int((own < seen.after).sum())
            found.append(Seen(after, seen.duplicates, seen.owners))
    print()
    assert len(found) >= 15
    assert told(f"{name}, {others:.0%} others, of its own", found) >= 0.9 * len(found)


@pytest.mark.parametrize("blur", [0.05, 0.1, 0.3])
def test_noise_beyond_fingerprints_gives_itself_away(blur: float, ask: Any) -> None:
    """Draws that are blurred are no near duplicates; pictures that are blurred are read with doubts, and so seen."""
    of, watch, good = digits(), Watch(digits()), 0
    for _, target, (_, adversarial) in searched("NES", 10, SEARCHES["NES"][1], of.scores, blur=blur):
        good += adversarial is not None and of.scores(adversarial[None])[0].argmax() != of.labels[target]
    found = [watch.client(s.run.asked, 11_000 + s.seed) for s in searched("NES", 20, 500, ask, blur=blur)]
    duplicates = np.mean([s.duplicates for s in found])
    print(f"\n  blurred by {blur}: {good} of 10 succeed, {duplicates:.2f} of questions are near duplicates")
    assert told("NES, in a tenth of its questions", found) >= 18
    assert duplicates < 0.1 or blur < 0.3


def test_five_identities_are_one_cluster(ask: Any) -> None:
    """A search dealt to five: each is linked to others by whose questions his repeat, flagged alone or not."""
    print()
    watch = Watch(digits())
    for name in SEARCHES:
        alone, whole, count = list[Seen](), 0, 0
        for seed, _, (asked, adversarial) in searched(name, 30, 100, ask):
            if adversarial is None:
                slots = [12_000 + 10 * seed + i % 5 for i in range(len(asked))]
                found = watch.clients(asked, slots)
                links = [(slot, int(o), 1) for slot, seen in found.items() for o in seen.owners if o >= 0]
                groups = fleet.clusters(links, 3)
                alone += found.values()
                whole += bool(groups) and set(groups[0]) == set(slots)
                count += 1
        told(f"{name}, identities on their own", alone)
        print(f"    {whole} of {count} searches are one cluster")
        assert whole >= 0.9 * count > 0


@pytest.mark.parametrize("streaming", [0.0, 0.05, 0.2])
def test_cameras_are_taken_for_searchers(streaming: float, ask: Any) -> None:
    """A camera's frames are near duplicates, in bursts; so are the questions of searches.

    Cameras in the benign log help them, but not altogether: evidence supposes that whatever was asked before, the next
    question is no more unusual than the log's means, and within a burst it is. And they help searches.
    """
    rng, made = np.random.default_rng(7), Watch(digits(), streaming)
    print(f"\n  {streaming:.0%} of the benign log are cameras")
    cameras = told("cameras", [made.client(digits().streaming(rng, 60), 20_000 + i) for i in range(100)])
    others = told("others", [made.client(digits().browsing(rng, 60), 21_000 + i) for i in range(100)])
    seen = {n: told(n, [made.client(s.run.asked, 22_000 + s.seed) for s in searched(n, 20, 50, ask)]) for n in SEARCHES}
    assert others == 0
    assert cameras == 100 if streaming == 0 else cameras < 50
    assert min(seen["NES"], seen["HopSkipJump"]) >= 15


def test_few_questions_and_the_very_same_one_are_no_search() -> None:
    """Chen et al. (2019) alarm at the fifty-first like question; here the same one is none, however often."""
    watch, rng, found = Watch(digits()), np.random.default_rng(3), []
    for i, x in enumerate(digits().browsing(rng, 20)):
        assert watch.client(np.repeat(x[None], 500, axis=0), 30_000 + i).after is None
        found.append(watch.client(x + rng.uniform(0, 1e-6, (50, *x.shape)).astype(np.float32), 31_000 + i))
    print()
    assert told("hardly changed fifty times", found) == 20
    assert min(s.after for s in found if s.after is not None) >= 3


def test_fingerprints_of_real_pictures() -> None:
    """Blacklight's (Li et al. 2022) cases: the same, a change of 20 of 255 in one window, and others, at once."""
    rng, window = np.random.default_rng(4), digits().window
    index, counts = Fingerprints(b"secret", 1.0, window), np.zeros(3, int)
    for x in digits().x[:400]:
        changed = x.ravel().copy()
        start = rng.integers(64 - window + 1)
        changed[start : start + window] += rng.uniform(-20, 20, window) / 255
        rows = np.stack([x.ravel(), x.ravel() + 1e-6, changed])
        counts += index.seen(rows).duplicate
    print(f"\n  of 400 pictures: unlike {counts[0]}, the same {counts[1]}, changed in one window {counts[2]}")
    assert counts[0] <= 4
    assert counts[1:].min() >= 398
