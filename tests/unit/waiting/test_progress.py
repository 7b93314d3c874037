"""What a log says of a wait: short, and no more often than there is news."""

from __future__ import annotations

import math
from typing import Any

import pytest

from airflow_provider_modelscope.waiting.progress import Place, Running, rounded, utc

NOW = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC


def running(generation_id: str = "42", **arguments: Any) -> Running:
    return Running(
        generation_id=generation_id, **{"submitted_at": NOW - 14, "usual_seconds": None, **arguments}
    )


def place(position: int, **arguments: Any) -> Place:
    return Place(position=position, **{"waiting": 12, "seconds": None, "running": (), **arguments})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"),
        (0.4, "0 s"),
        (99, "99 s"),
        (100, "2 min"),
        (5999, "100 min"),
        (6000, "1.7 h"),
        (90000, "25.0 h"),
    ],
)
def test_duration_has_few_digits(seconds: float, text: str) -> None:
    assert rounded(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (NOW, "2023-11-14 22:13:20 UTC"),
        (math.inf, "9999-12-31 23:59:59 UTC"),
        (2.0**40, "9999-12-31 23:59:59 UTC"),
    ],
)
def test_time_is_text_even_if_it_is_never(seconds: float, text: str) -> None:
    assert utc(seconds) == text


def test_progress_is_an_age_of_an_expected_duration() -> None:
    assert running().progress(NOW) == "14 s"
    assert running(usual_seconds=30).progress(NOW) == "14 s of about 30 s"


def test_place_says_who_occupies_the_account() -> None:
    one = running(task="draw [2] of Dag postcards", usual_seconds=30)
    assert place(3, seconds=70, running=[one]).describe(NOW) == (
        "Queued at position 3 of 12, for about 70 s. Now running: generation 42 (task draw [2] of Dag "
        "postcards), 14 s of about 30 s"
    )


def test_place_invents_nothing_that_is_unknown() -> None:
    assert place(1).describe(NOW) == (
        "Queued at position 1 of 12. Now running: nothing that this triggerer knows of. Check for tasks on "
        "workers, another triggerer and other clients with the same token"
    )
    assert place(1, seconds=0.0, running=[running()]).describe(NOW) == (
        "Queued at position 1 of 12. Now running: generation 42, 14 s"
    )


def test_place_names_at_most_three_generations() -> None:
    text = place(1, running=[running(str(number)) for number in range(40)]).describe(NOW)
    assert text.endswith("generation 2, 14 s; 37 more")


@pytest.mark.parametrize(
    ("earlier", "later", "is_news"),
    [
        (place(4), place(3), False),
        (place(4), place(2), True),
        (place(1), place(1), False),
        (place(4), place(5), False),
        (place(4), place(4, running=[running()]), True),
        (place(4, running=[running()]), place(4), False),
        (place(4, running=[running()]), place(4, running=[running("43")]), False),
        (place(4, running=[running()]), place(4, running=[running()], seconds=9), True),
        (place(4, running=[running()], seconds=9), place(4, running=[running()], seconds=8), False),
    ],
)
def test_place_is_news_if_half_the_queue_is_gone_or_more_is_known(
    earlier: Place, later: Place, is_news: bool
) -> None:
    assert later.is_news(earlier) is is_news
    assert later.is_news(None)


def test_task_at_the_end_of_a_long_queue_logs_ten_places() -> None:
    logged: list[Place] = []
    for position in range(1000, 0, -1):
        one = place(position, running=[running()] if position % 3 else (), seconds=position % 3 or None)
        if one.is_news(logged[-1] if logged else None):
            logged.append(one)
    assert 10 <= len(logged) <= 20
