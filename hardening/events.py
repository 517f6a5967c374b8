"""Where events go. A sink takes them one at a time, without blocking and without raising."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from hardening.types import Clock, Event

#: Seconds between two events that say the same about the same client.
PAUSE = 60.0
#: What was told lately is remembered up to this many events; beyond that it is forgotten.
_MOST = 16_384
LOGGER = "hardening.events"


class LogSink:
    """Writes each event as one line of JSON to the logger `LOGGER`, at level WARNING on what should be looked into."""

    def __init__(self) -> None:
        self._log = logging.getLogger(LOGGER)

    def emit(self, event: Event) -> None:
        level = logging.WARNING if event.kind in ("denied", "release-failed", "window-alarm") else logging.INFO
        if self._log.isEnabledFor(level):
            body = {"kind": event.kind, "time": event.time, "client": event.client, "evidence": dict(event.evidence)}
            self._log.log(level, json.dumps(body, default=str, ensure_ascii=True))

    def close(self) -> None:
        """Nothing is held."""


class Once:
    """Tells of what goes on and on once every `PAUSE`.

    Args:
        tell: emits an event: kind, client, evidence.
        clock: seconds since the epoch.
    """

    def __init__(self, tell: Callable[..., None], clock: Clock) -> None:
        self._tell, self._clock = tell, clock
        self._told: dict[tuple[str, ...], tuple[float, int]] = {}

    def tell(self, kind: str, client: str, **evidence: Any) -> None:
        """An event, unless the same was told a moment ago; `times` counts what was not told since."""
        key, now = (kind, client, *map(str, evidence.values())), self._clock()
        at, times = self._told.get(key, (now - PAUSE, 0))
        if 0 <= now - at < PAUSE:
            self._told[key] = at, times + 1
            return
        if len(self._told) >= _MOST:
            self._told.clear()
        self._told[key] = now, 0
        self._tell(kind, client, **evidence, times=times + 1)
