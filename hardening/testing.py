"""Stand-ins for the parts of the world that a Guard touches, for the tests of whoever builds on it."""

from __future__ import annotations

from hardening.types import Event

__all__ = ["FakeClock", "RecordingSink"]


class FakeClock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class RecordingSink:
    """Keeps every event in `events`."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.closed = False

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        self.closed = True
