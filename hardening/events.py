"""Where events go. A sink takes them one at a time, without blocking and without raising."""

from __future__ import annotations

import json
import logging

from hardening.types import Event

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
