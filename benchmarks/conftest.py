"""Hooks and fixtures of the benchmarks; tests take the same ones over into sessions of their own."""

from benchmarks.gate import (  # noqa: F401
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_sessionstart,
    pytest_terminal_summary,
    race,
)
