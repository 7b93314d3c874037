"""What this provider assumes about the service: one line of the report for each."""

from __future__ import annotations

FREE = {
    "connection": "The API is reached over verified TLS, or on this machine",
    "models": "/v1/models needs no token",
    "user": "users/me accepts the token",
    "balance": "The credit is three numbers: total = available + frozen",
    "price": "The price of the model is 0.2, 0.5, 1 or 2",
    "task": 'A poll of an unknown id is FAILED, "task not found"',
    "task-without-header": 'A poll without the header X-ModelScope-Task-Type is FAILED, "task not found"',
    "bad-token-site": "users/me rejects a bad token: 401, InvalidAuthentication",
    "bad-token-api": 'The API rejects a bad token: 401, "Authentication failed"',
    "unknown-model": 'An unknown model is rejected: 400, "has no provider supported"',
}
"""The checks that cost nothing."""

SPENDING = {
    "accepted": "A submission is accepted with an id, without an image",
    "one-at-a-time": 'A second submission while one runs is rejected: 500, "queue is full"',
    "frozen": "The price is frozen while the generation runs",
    "status": "The status is PENDING or PROCESSING, then SUCCEED",
    "time-taken": "time_taken is in milliseconds, and not longer than the wait",
    "input": "The parameters that were used are reported",
    "seed": "The seed that was sent is used",
    "no-redirect": "The image's URL needs no redirect",
    "content-type": "The content type is that of the bytes",
    "label": "The image is labelled as made by AI",
    "url-stays": "The image's URL still works a minute later",
    "spent": "The price is what was spent",
}
"""The checks of ``--spend``, which pay for one image."""

NO_QUOTA_HEADERS = "no-quota-headers"

ASSUMPTIONS = {**FREE, **SPENDING, NO_QUOTA_HEADERS: "No response has a header modelscope-ratelimit-*"}
