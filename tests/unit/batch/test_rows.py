"""The rows of a batch: every request is validated before the first is sent, and errors name their places."""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_modelscope.batch.rows import Row, Shard, parse_shard, read_rows
from airflow_provider_modelscope.exceptions import InvalidRequestError
from airflow_provider_modelscope.protocol.request import GenerationRequest
from airflow_provider_modelscope.validation import INVALID

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DEFAULTS = {"model": "Qwen/Qwen-Image", "size": "512x512", "seed": None, "loras": ""}


def rows(requests: Any, **options: Any) -> list[Row]:
    return list(read_rows(requests, **{"defaults": DEFAULTS} | options))


def rejection(requests: Any, **options: Any) -> str:
    """Return the errors of an input."""
    with pytest.raises(InvalidRequestError) as raised:
        rows(requests, **options)
    return str(raised.value).removeprefix(INVALID)


def written(folder: Path, lines: Sequence[str]) -> str:
    """Write a JSONL file, and return its URI."""
    (folder / "requests.jsonl").write_text("\n".join(lines))
    return f"file://{folder}/requests.jsonl"


def test_a_row_is_complete() -> None:
    own = {
        "model": "a/b",
        "prompt": "a cat",
        "negative_prompt": "dogs",
        "size": "64x64",
        "seed": "5",
        "steps": 30,
        "guidance": 7.5,
        "image_url": "s3://bucket/cat.png",
        "loras": {"c/d": 1.0},
        "extra_parameters": {"sampler": "Euler a"},
    }
    data = {"sku": 17, "tags": ["ä", None, 0.5]}
    assert rows(["a dog", own | {"key": "猫-17", "data": data}]) == [
        Row(
            number=1,
            key="000001",
            request=GenerationRequest(model="Qwen/Qwen-Image", prompt="a dog", size="512x512"),
        ),
        Row(number=2, key="猫-17", request=GenerationRequest(**own), data=data),  # type: ignore[arg-type]
    ]


@pytest.mark.parametrize("given", [None, ""])
def test_an_empty_cell_takes_the_default(given: Any) -> None:
    [row] = rows([{"prompt": "a cat", "size": given, "key": given, "data": given, "seed": given}])
    assert (row.key, row.request.size, row.data) == ("000001", "512x512", None)


def test_an_empty_list_overrides_a_default() -> None:
    [row] = rows(
        [{"prompt": "a cat", "image_url": []}], defaults={"model": "a/b", "image_url": "https://a.example/1"}
    )
    assert row.request.image_url is None


@pytest.mark.parametrize(
    "requests", [["a cat"], ("a cat",), '["a cat"]', ' [\n{"prompt": "a cat", "seed": null}]\n']
)
def test_a_list_may_be_rendered_text(requests: Any) -> None:
    assert [row.request.prompt for row in rows(requests)] == ["a cat"]


@pytest.mark.parametrize("requests", [[], (), "[]", " [ ] "])
def test_an_empty_list_yields_nothing(requests: Any) -> None:
    assert rows(requests) == []


FORMS = "must be a list of prompts or of mappings, or the URI of a file"


@pytest.mark.parametrize(
    ("requests", "problem"),
    [
        ("a cat", "put a single prompt into a list"),
        ("prompts.jsonl", "begin the path of a local file with 'file://'"),
        ("", FORMS),
        ("None", FORMS),
        (None, FORMS),
        ({"prompt": "a cat"}, "put a single mapping into a list"),
        ('{"prompt": "a cat"}', "put a single mapping into a list"),
        ("['a cat']", "in a template, end it with '| tojson'"),
        ('["a cat", NaN]', "NaN is no JSON number"),
        ("[" * 100_000, "nested too deeply"),
        ((prompt for prompt in ["a cat"]), FORMS),
        ({"a cat"}, FORMS),
        (b"a cat", FORMS),
        (17, FORMS),
        (True, FORMS),
        ("s3://bucket/prompts.txt", "must end with .jsonl or .csv or .parquet"),
        ("s3://bucket/prompts.jsonl.gz", "must end with .jsonl or .csv or .parquet"),
        ("s3://bucket/prompts.jsonl?sig=SIGNED", "must end with"),
        ("s3://bucket/", "must end with"),
        ("s3://", "must end with"),
    ],
    ids=lambda part: re.sub(r" at 0x\w*", "", repr(part))[:40],
)
def test_other_input_is_rejected(requests: Any, problem: str) -> None:
    message = rejection(requests)
    assert message.startswith("requests = ")
    assert problem in message
    assert "SIGNED" not in message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (17, "must be a prompt or a mapping, not int"),
        (None, "must be a prompt or a mapping, not NoneType"),
        (["a cat"], "must be a prompt or a mapping, not list"),
        (b"a cat", "must be a prompt or a mapping, not bytes"),
        ('{"prompt": "a cat"}', "is the JSON text of a mapping: give the mapping itself"),
        ("s3://bucket/prompts.csv", "is the URI of a file: give it as requests itself"),
        ("", "prompt = '': must describe the image"),
        ({}, "prompt is missing"),
        ({"prompt": None}, "prompt is missing"),
        ({"prompt": "\ud800"}, "must be valid Unicode"),
        ({"prompt": "a\0b"}, "must not contain NUL characters"),
        ({"prompt": "a cat", "sede": 1}, "unknown parameter 'sede' (did you mean seed?)"),
        ({"prompt": "a cat", "destination": "x"}, "unknown parameter 'destination' (allowed are model, "),
        ({"prompt": "a cat", 5: "x"}, "unknown parameter 5 (allowed are model, "),
        ({"Prompt": "a cat"}, "unknown parameter 'Prompt' (did you mean prompt?)"),
        ({"prompt": "a cat", "seed": -1}, "seed = -1: must be an integer"),
        ({"prompt": "a cat", "size": "2000x64"}, "size = '2000x64': must be from 64x64 to 1664x1664"),
        ({"prompt": "a cat", "image_url": "h://[/a?sig=SIGNED"}, "image_url = 'h://[/a?...': must be"),
        ({"prompt": "a cat", "model": "MusePublic/z-image", "size": "64x64"}, "size = '64x64': must be"),
        ({"prompt": "a cat", "data": float("nan")}, "data must be JSON (Out of range float values"),
        ({"prompt": "a cat", "data": {1, 2}}, "data must be JSON (Object of type set"),
        ({"prompt": "a cat", "data": {(1, 2): 3}}, "data must be JSON (keys must be"),
        ({"prompt": "a cat", "data": "\ud800"}, "data must be valid Unicode"),
        ({"prompt": "a cat", "data": ["\0"]}, "data must not contain NUL characters"),
        ({"prompt": "a cat", "data": "x" * 65_535}, "data must have at most 64 KiB of JSON, not 65537 bytes"),
        ({"prompt": "a cat", "data": json.loads("[" * 200 + "]" * 200)}, "nested deeper than 100 levels"),
    ],
    ids=lambda part: repr(part)[:40],
)
def test_an_invalid_entry_is_named(entry: Any, problem: str) -> None:
    message = rejection(["a cat", entry, "a dog"])
    assert message.startswith("requests[1]: ")
    assert problem in message
    assert "requests[0]" not in message
    assert "SIGNED" not in message


def test_a_wrong_name_of_the_prompt_is_one_error() -> None:
    assert rejection([{"Prompt": "a cat"}]).endswith(
        "requests[0]: unknown parameter 'Prompt' (did you mean prompt?)."
    )


def test_a_prompt_may_be_json() -> None:
    prompts = ['{"scene": "a street"}', "{a cat|a dog}", "[a cat]"]
    assert [row.request.prompt for row in rows(prompts)] == prompts


def test_a_list_that_contains_itself_is_rejected() -> None:
    data: list[Any] = []
    data.append(data)
    assert "nested deeper than 100 levels" in rejection([{"prompt": "a cat", "data": data}])


def test_data_is_a_copy() -> None:
    data = {"a": [1]}
    [row] = rows([{"prompt": "a cat", "data": data}])
    data["a"].append(2)
    assert row.data == {"a": [1]}


@pytest.mark.parametrize("data", [0, False, 0.5, "text", [], {}, "\\u0000", "x" * 65_534])
def test_data_is_passed_through(data: Any) -> None:
    [row] = rows([{"prompt": "a cat", "data": data}])
    assert row.data == data


# Keys


@pytest.mark.parametrize(
    ("key", "kept"), [(17, "17"), ("a b", "a b"), ("a.b-c_d", "a.b-c_d"), ("k" * 200, "k" * 200)]
)
def test_a_key_may_be_text_or_an_integer(key: Any, kept: str) -> None:
    assert [row.key for row in rows([{"prompt": "a cat", "key": key}])] == [kept]


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        (True, "must be text or an integer"),
        (1.0, "must be text or an integer"),
        (["a"], "must be text or an integer"),
        ("a/b", "must not contain '/'"),
        ("a~2", "must not end with '~' and a number"),
        ("a\\b", "must not contain '/', '\\'"),
        ("a?b", "must not contain"),
        ("a#b", "must not contain"),
        ("a::b", "must not contain"),
        (".", "must not begin with '.'"),
        ("..", "must not begin with '.'"),
        (".hidden", "must not begin with '.'"),
        ("a\nb", "must be printable"),
        ("a\0b", "must be printable"),
        ("\ud800", "must be printable"),
        ("a\u202eb", "must be printable"),
        (" a", "without spaces around it"),
        ("  ", "without spaces around it"),
        ("k" * 201, "must have at most 200 bytes in UTF-8, not 201"),
        ("猫" * 67, "must have at most 200 bytes in UTF-8, not 201"),
    ],
    ids=lambda part: ascii(part)[:40],
)
def test_an_invalid_key_is_rejected(key: Any, problem: str) -> None:
    message = rejection([{"prompt": "a cat", "key": key}])
    assert message.startswith("requests[0]: key = ")
    assert problem in message


@pytest.mark.parametrize(
    ("first", "second"), [("cat", "cat"), ("cat", "Cat"), ("café", "cafe\u0301"), ("5", 5)]
)
def test_two_rows_have_no_equal_keys(first: Any, second: Any) -> None:
    message = rejection([{"prompt": "a cat", "key": first}, "a dog", {"prompt": "a cat", "key": second}])
    assert message.startswith(f"requests[2]: key = {str(second)!r}: requests[0] has the same key")


def test_a_key_is_no_other_rows_number() -> None:
    later = rejection([{"prompt": "a cat", "key": "000002"}, "a dog"])
    assert later.startswith("requests[1]: the number of this row = '000002': requests[0] has the same key")
    earlier = rejection(["a dog", {"prompt": "a cat", "key": "000001"}])
    assert earlier.startswith("requests[1]: key = '000001': requests[0] has the same key")


# Errors


def test_twenty_errors_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    uri = written(tmp_path, ['"a cat"', "", *('{"prompt": ""}' for _ in range(57))])
    message = rejection(uri)
    assert message.startswith(f"requests = {uri!r}: line 3: prompt is missing; line 4: ")
    assert message.endswith("line 22: prompt is missing; and 37 more.")


def test_long_errors_never_hide_how_many_there_are() -> None:
    message = rejection([*[{"prompt": "a cat", "image_url": "x" * 1000, "seed": "y" * 1000}] * 50, {}])
    assert len(message) < 4000
    shown = message.count("]: ")
    assert 10 < shown <= 20
    assert message.endswith(f"; and {101 - shown} more.")
    assert "requests[50]" not in message  # short enough, but not one of the first


def test_an_invalid_default_is_reported_once() -> None:
    defaults = {"model": "Qwen/Qwen-Image", "size": "2000x64", "steps": 0}
    message = rejection(
        ["a cat", {"prompt": "a dog", "steps": 5}, {"prompt": "", "size": "64x64"}] * 50, defaults=defaults
    )
    assert message.count("steps = 0: ") == 1
    assert message.count("size = '2000x64': ") == 1
    assert message.startswith("steps = 0: ")
    assert message.count("requests[2]: prompt is missing") == 1


def test_a_default_that_no_row_uses_is_no_error() -> None:
    defaults = {"model": "Qwen/Qwen-Image", "size": "2000x64"}
    assert len(rows([{"prompt": "a cat", "model": "a/b"}], defaults=defaults)) == 1


def test_a_size_for_another_model_names_the_operator() -> None:
    message = rejection([{"prompt": "a cat", "model": "a/z-image"}], defaults=DEFAULTS | {"size": "64x64"})
    assert message.startswith("requests[0]: size = '64x64': must be from 512x512")
    assert "It is the operator's: give this row a size of its own" in message


def test_a_size_must_suit_the_fallback_models() -> None:
    fallbacks = [{"model": "a/flux"}, {"model": "a/z-image", "size": "512x512"}]
    given = ["a cat", {"prompt": "a dog", "size": "1664x64"}, {"prompt": "a cow", "size": "1024x64"}]
    message = rejection(given, fallbacks=fallbacks)
    assert message.startswith("requests[1]: size = '1664x64': must be from 64x64 to 1024x1024 for FLUX")
    assert message.endswith("a/flux is a fallback: give it a size in fallback_models.")
    assert len(rows(given, fallbacks=fallbacks, check_ranges=False)) == 3


def test_each_row_needs_a_model_if_there_is_no_default() -> None:
    message = rejection([{"prompt": "a cat", "model": "a/b"}, "a dog"], defaults={"model": None})
    assert message == "requests[1]: model is missing: the operator has none, so each row needs one."


def test_ranges_need_not_be_checked() -> None:
    request = {"prompt": "a cat", "size": "4000x64", "guidance": 0.5}
    assert len(rows([request], check_ranges=False)) == 1
    assert rejection([request]).count("check_ranges=False") == 2
    message = rejection([request | {"seed": -1}], check_ranges=False)
    assert (
        message
        == "requests[0]: seed = -1: must be an integer from 0 to 2147483647: leave seed out for a random one."
    )


def test_reading_stops_after_the_limit() -> None:
    class Endless(list[str]):
        def __iter__(self) -> Any:
            yield from ("a cat",) * 6
            pytest.fail("reads on")

    assert len(rows(["a cat"] * 5, max_requests=5)) == 5
    message = rejection(Endless(["a cat"]), max_requests=5)
    assert message == "requests[5]: there are more than 5 requests: split them, or raise max_requests."


def test_rows_come_before_the_input_ends() -> None:
    assert [row.number for row in islice(read_rows(["a", "b", 3], defaults=DEFAULTS), 2)] == [1, 2]


# Shards


def test_the_shards_have_each_row_once() -> None:
    shards = [parse_shard(f"{index}/3") for index in range(3)]
    assert shards[1] == Shard(index=1, count=3)
    assert [[row.number for row in rows(["a"] * 7) if shard.contains(row)] for shard in shards] == [
        [1, 4, 7],
        [2, 5],
        [3, 6],
    ]


def test_a_row_with_a_key_stays_in_its_shard_when_it_moves() -> None:
    keyed = [{"key": f"cat-{number}", "prompt": "a cat"} for number in range(20)]
    shard = parse_shard("1/3")
    before, after = (
        [row.key for row in rows(requests) if shard.contains(row) and row.key.startswith("cat")]
        for requests in (keyed, ["a dog", *keyed])
    )
    assert before == after
    assert 0 < len(before) < 20


@pytest.mark.parametrize(
    "given",
    [
        "3/3",
        "4/3",
        "0/0",
        "-1/3",
        "a/b",
        "1",
        "",
        "1/",
        "/3",
        "1/3/5",
        "0.0/3",
        "０/３",
        "0/99999",
        None,
        1,
        (0, 3),
    ],
)
def test_another_shard_is_rejected(given: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"shard = .*: must be text such as '0/3'.* count from 0"):
        parse_shard(given)


def test_a_rendered_shard_may_have_spaces_around_it() -> None:
    assert parse_shard(" 2/3\n") == Shard(index=2, count=3)
