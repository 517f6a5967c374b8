"""What is drawn must not show in how it is drawn: the same instructions whatever the key, the nonce and the value.

Two ways to see it. The instructions that draw are single-stepped, and every call must take the very same path. And in
the optimised code of the ciphers and of a draw, no branch and no address depends on anything that was loaded, but for
the look-up in the table of the law, which is by the value drawn.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from numba import float64, int64, njit, types, uint32, uint64

from hardening.kernels import aes, prf
from hardening.kernels.lanes import LONGS
from hardening.noise import CIPHERS
from tests.test_ciphers import FORMS, MODULES

ROOT = Path(__file__).parent.parent
TRACE = """
import ctypes, hashlib, json, os, signal, sys
import numpy as np
from hardening import kernels
from hardening.kernels.layout import Job
from hardening.noise import Key
from hardening.pipeline import Pipeline
from hardening.program import Program, Task
from hardening.transforms import BoundaryRandomisedResponse, Exponential, Laplace, PermuteAndFlip

cipher, rows, width, name = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
transform = {
    "additive.noise": Laplace(scale=1.0),
    "labels.exponential": Exponential(epsilon=4.0),
    "labels.permute_and_flip": PermuteAndFlip(epsilon=4.0),
    "boundary.coin": BoundaryRandomisedResponse(epsilon=0.5, margin=2.0),
}[name]
space = "scalar" if name == "additive.noise" else "simplex"

def leaky(job):
    words = carray(pointer(job), (1,), np.int64)
    scores = carray(pointer(words[0]), (1,), np.float64)
    if scores[0] > 0.0:
        scores[0] -= 1.0

if cipher == "leaky":
    import numba
    from numba import carray
    from hardening.kernels.lanes import pointer
    kept = numba.cfunc("void(int64)")(leaky)
    address, cipher = kept.address, "chacha20"
else:
    address = kernels.address(name + "_" + cipher.replace("-", "_"))
call = ctypes.CFUNCTYPE(None, ctypes.c_int64)(address)
rng, tasks = np.random.default_rng(1), []
for i in range(8):
    program = Program(Pipeline(space, (transform,)), width, Key(1, cipher, rng.bytes(32)), "p", "m")
    scores, nonces = rng.dirichlet(np.ones(width), rows), rng.integers(0, 2**32, (rows, 3), dtype=np.uint32)
    tasks.append(Task(program, scores, rows, nonces))
    assert tasks[-1].run() == 0
    tasks[-1].job[[Job.PARAMS, Job.DATA, Job.SECRET]] = program._steps[0, 1:4]  # as the instruction finds them

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes, libc.ptrace.restype = [ctypes.c_long, ctypes.c_long] + [ctypes.c_void_p] * 2, ctypes.c_long
TRACEME, CONT, STEP, GETREGS = 0, 7, 9, 12
child = os.fork()
if child == 0:
    if libc.ptrace(TRACEME, 0, None, None) != 0:
        os._exit(3)
    stop, own, jobs = os.kill, os.getpid(), [task.job.ctypes.data for task in tasks]
    for job in jobs:
        stop(own, signal.SIGSTOP)
        call(job)
    os._exit(0)

registers = (ctypes.c_uint64 * 27)()
def where():
    libc.ptrace(GETREGS, child, None, ctypes.addressof(registers))
    return registers[16], registers[19]

def step():
    libc.ptrace(STEP, child, None, None)
    os.waitpid(child, 0)

paths = []
for task in tasks:
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        print("null")
        sys.exit()
    place, stack = where()
    while place != address:
        step()
        place, stack = where()
    entered, path, count = stack, hashlib.sha256(), 0
    while stack <= entered:
        path.update(int(place).to_bytes(8, "little"))
        count += 1
        step()
        place, stack = where()
    paths.append((count, path.hexdigest()))
    libc.ptrace(CONT, child, None, None)
os.waitpid(child, 0)
print(json.dumps(paths))
"""


def paths(cipher: str, rows: int, width: int, name: str, **environment: str) -> list[tuple[int, str]]:
    """How many machine instructions each of eight calls took, with keys, nonces and scores of its own, and which."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("registers are read as Linux on x86-64 has them")
    arguments = [sys.executable, "-c", TRACE, cipher, str(rows), str(width), name]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=ROOT, env=os.environ | environment)
    found = json.loads(run.stdout)
    if found is None:
        pytest.skip("processes may not be traced here")
    return [(count, digest) for count, digest in found]


@pytest.mark.parametrize(
    "machine", [{}, pytest.param({"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}, marks=pytest.mark.deep)]
)
@pytest.mark.parametrize("shape", [(1, 40), (8, 20)])
@pytest.mark.parametrize(
    ("name", "cipher"),
    [
        *(("additive.noise", cipher) for cipher in CIPHERS),
        *((name, "chacha20") for name in ("labels.exponential", "labels.permute_and_flip", "boundary.coin")),
    ],
)
def test_the_path_is_the_same_whatever_is_drawn(
    name: str, cipher: str, shape: tuple[int, int], machine: dict[str, str]
) -> None:
    taken = paths(cipher, *shape, name, **machine)
    assert len(taken) == 8
    assert taken[0][0] > 200
    assert len(set(taken)) == 1


def test_the_tracer_sees_a_branch() -> None:
    assert len(set(paths("leaky", 1, 40, "additive.noise"))) == 2


def secret_choices(function: Any, *signature: Any) -> tuple[int, int]:
    """Branches, and addresses of loads and stores, that depend on vectors given or on anything loaded."""
    compiled = njit(signature, no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
    (text,) = compiled.inspect_llvm().values()
    branches = addresses = 0
    module = llvm.parse_assembly(text, context=llvm.create_context())
    own = {body.name for body in module.functions if not body.is_declaration}
    for body in module.functions:
        if body.name.startswith("NRT_"):  # counts of references
            continue
        made = {str(i): i for block in body.blocks for i in block.instructions}
        given = {str(a) for a in body.arguments if str(a.type).startswith(("<", "["))}
        for instruction in made.values():
            operands = list(instruction.operands)
            if instruction.opcode in ("br", "switch") and len(operands) > 1:
                branches += secret(str(operands[0]), made, given)
            elif instruction.opcode in ("load", "store"):
                addresses += secret(str(operands[-1]), made, given)
            elif instruction.opcode == "call":
                name = operands[-1].name
                assert name in own or name.startswith("llvm."), name
                assert not name.startswith(("llvm.masked", "llvm.mem")), name
    return branches, addresses


def secret(value: str, made: dict[str, Any], given: set[str]) -> bool:
    """Whether a value is computed from what was `given`, or from something in memory."""
    values, seen = [value], set()
    while values:
        value = values.pop()
        if value in given:
            return True
        if value in seen or value not in made:
            continue
        seen.add(value)
        instruction = made[value]
        operands = list(instruction.operands)
        called = operands.pop().name if instruction.opcode == "call" else ""
        if instruction.opcode == "load":
            return True
        if not called or called.startswith("llvm."):  # of kernels only a status comes back, and they are searched, too
            values += map(str, operands)
    return False


ARRAY, STATES = types.Array(uint64, 1, "C"), types.UniTuple(LONGS, aes.STATES)
NONCES = types.Array(uint32, 1, "C")


@pytest.mark.parametrize("form", FORMS)
def test_no_form_of_aes_branches_or_looks_up_by_a_secret(form: tuple[str, int]) -> None:
    encrypt = aes.encrypt_with(form)
    assert secret_choices(lambda keys, states: encrypt(keys, states), ARRAY, STATES) == (0, 0)


@pytest.mark.parametrize("cipher", CIPHERS)
def test_no_stream_branches_or_looks_up_by_a_secret(cipher: str) -> None:
    key = NONCES if cipher == "chacha20" else ARRAY
    for make in (MODULES[cipher].along, MODULES[cipher].across):
        assert secret_choices(make.py_func, key, NONCES, int64, int64, ARRAY) == (0, 0)


def test_a_draw_only_looks_up_its_slots() -> None:
    draw = prf.draw
    assert secret_choices(
        lambda stream, i, table, bits, offset: draw(stream, i, table, bits, offset), ARRAY, int64, ARRAY, int64, int64
    ) == (0, 8)


def test_the_search_sees_a_branch_and_a_look_up() -> None:
    def leaky(table: Any, i: int) -> float:
        return table[np.int64(table[i])] if table[i] > 3.0 else 0.0

    branches, addresses = secret_choices(leaky, types.Array(float64, 1, "C"), int64)
    assert branches > 0
    assert addresses > 0
