"""What takes minutes runs when asked for: ``pytest -m deep``. Properties are tried on the same examples in every run.

``make test-deep`` looks for new examples (``--hypothesis-profile=explore``). In neither is it an error to be slow: that
would say more about the machine than about the code.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("explore"), derandomize=True)
settings.load_profile("same")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without an -m of the user's, tests marked deep are left out."""
    if not config.option.markexpr:
        deep = [item for item in items if item.get_closest_marker("deep")]
        items[:] = [item for item in items if item not in deep]
        config.hook.pytest_deselected(items=deep)
