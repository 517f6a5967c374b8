"""Ask a hardened model as one client and print what that client has learnt: wrap_session.py MODEL POLICY [CLIENT]."""

import sys

import hardening_onnx
import numpy as np

import hardening

model, policy, client = (*sys.argv[1:], "alice")[:3]
session = hardening_onnx.wrap(model, hardening.load_policy(policy))
question = session.get_inputs()[0]
shape = [n if isinstance(n, int) else 1 for n in question.shape]
answers = session.run(None, {question.name: np.ones(shape, "f4")}, client=client)
for output, answer in zip(session.get_outputs(), answers, strict=True):
    print(output.name, answer)
print(session.guard.standing(client))
