"""Hypothesis profiles: 100 examples for each test by default, 600 with the profile ``ci``.

Select one with ``--hypothesis-profile ci`` or the environment variable ``HYPOTHESIS_PROFILE``.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

for name, max_examples in (("default", 100), ("ci", 600)):
    settings.register_profile(
        name,
        derandomize=True,  # a failure must repeat
        database=None,
        deadline=None,
        max_examples=max_examples,
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.large_base_example,
        ],
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
