"""How many examples hypothesis tries: WULEWULE_EXAMPLES, few in a normal run."""

import os

from hypothesis import HealthCheck, settings

SETTINGS = settings(
    max_examples=int(os.environ.get("WULEWULE_EXAMPLES", "100")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
