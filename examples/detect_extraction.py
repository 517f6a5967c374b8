"""Ordinary clients make a baseline; then a thief among new ones copies the model, as far as he gets.

The model reads handwritten digits. The thief has sixty digits of his own and asks about blends of two of them.
Needs scikit-learn and skl2onnx.
"""

import contextlib
import tempfile
from pathlib import Path

import hardening_onnx
import numpy as np
from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import hardening
from hardening.audit.extraction import as_distribution, train
from hardening.clients.baseline import calibrate
from hardening.clients.log import read_log, records
from hardening.config import parse_policy

POLICY = """schema = 1
[outputs.probabilities]
space = "simplex"
tiers = {normal = [ {kind = "types", n = 100} ], label = [ {kind = "label_only"} ]}
"""
DETECT = """
[detect]
baseline = "baseline.json"
[respond]
suspicion = [ {at = 1.0, tier = "label"}, {at = 2.0, deny = true} ]
"""

rng = np.random.default_rng(0)
x, y = load_digits(return_X_y=True)
x, y = (x[order := rng.permutation(len(x))] / 16).astype("f4"), y[order]
classifier = LogisticRegression(max_iter=1000).fit(x[:900], y[:900])
model = to_onnx(classifier, x[:1], options={"zipmap": False}, target_opset=17).SerializeToString()
unseen, kinds, own, judges = x[900:-260], y[900:-260], x[-260:-200], x[-200:]


def ordinary():
    """What an ordinary client asks: two hundred digits, of some classes more than of others."""
    weights = rng.dirichlet(np.full(10, 2.0))[kinds]
    return unseen[rng.choice(len(unseen), 200, p=weights / weights.sum(), replace=False)]


def log(client, questions):
    """The lines that are kept of an ordinary client: a few numbers for each question, nothing of it or its answer."""
    scores = {"probabilities": classifier.predict_proba(questions).astype("f4")}
    answer = calm.guard.finish(calm.guard.admit(client, 200), calm.guard.bind(scores, None, 200))
    return records(client, *answer.entries[0][1].asked())


def steal(session, blends):
    """Ask until refused, and learn from the answers: how many there were, and how often the copy is right."""
    answers = []
    with contextlib.suppress(hardening.Denied):
        for blend in blends:
            answers += list(session.run(["probabilities"], {"X": blend[None]}, client="thief")[0])
    copy = train(blends[: len(answers)], as_distribution(np.array(answers)), np.random.default_rng(1))
    return len(answers), np.mean(copy.labels(judges) == classifier.predict(judges))


calm = hardening_onnx.wrap(model, parse_policy(POLICY))
baseline = calibrate(read_log(line for i in range(200) for line in log(f"client {i}", ordinary())), "probabilities")
print(f"{baseline.held_out.outside} of {baseline.held_out.clients} held-out clients are outside the baseline")
with tempfile.TemporaryDirectory() as folder:
    Path(folder, "baseline.json").write_text(baseline.to_json())
    watched = hardening_onnx.wrap(model, parse_policy(POLICY + DETECT, Path(folder)))
for i in range(8):
    watched.run(["probabilities"], {"X": ordinary()}, client=f"new client {i}")
blends = (own[rng.integers(60, size=1500)] + own[rng.integers(60, size=1500)]) / 2
for name, session in (("not watched", calm), ("watched", watched)):
    print("thief, {}: {} answers, a copy that agrees with the model on {:.0%}".format(name, *steal(session, blends)))
for client, standing in watched.guard.clients().items():
    print(
        f"{client:14} {standing.queries:5} rows  suspicion {standing.suspicion:.2f}  next answered by {standing.tier}"
    )
