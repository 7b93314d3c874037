"""A request is validated before anything is sent, and sends exactly the given parameters."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from jinja2.nativetypes import NativeEnvironment

from airflow_provider_modelscope.compat import AirflowFailException
from airflow_provider_modelscope.exceptions import InvalidRequestError
from airflow_provider_modelscope.protocol.request import GenerationRequest, check_parameters

DATA_URI = "data:image/png;base64,iVBORw0KGgo="
HALF = "\ud83d"  # half of an emoji: a lone surrogate
SIXTH = 1 / 6

LEAD = "Invalid parameters, nothing was sent: "
SEED = "must be an integer from 0 to 2147483647: leave seed out for a random one"
STEPS = "must be an integer from 1 to 100"
GUIDANCE = "must be a number from 1.5 to 20, or any number with check_ranges=False"
SIZE = "must be width x height in pixels, such as '1024x768'"
MODEL = "must be a ModelScope model id"
IMAGE_URL = "must be one or a list of: an http(s) URL"
LORAS = "must be a LoRA id, or a mapping of 1 to 6 ids to weights that sum to 1.0"
EXTRA = "must be a mapping of names to JSON values"
NOT_JSON = ": in a template, end it with '| tojson'"
TOO_LONG = "must be shorter than 2000 characters, not 2000"

NATIVE = "If a template rendered it, the Dag sets render_template_as_native_obj=True: end the template with"

BAD: list[tuple[str, Any, str]] = [
    ("model", None, "must be text, not NoneType"),
    ("model", 5, "must be text, not int"),
    ("model", b"a/b", "must be text, not bytes"),
    ("model", "", MODEL),
    ("model", " \n", MODEL),
    ("model", "None", MODEL),
    ("prompt", "None", "must describe the image"),
    ("prompt", "null", "must describe the image"),
    ("model", f"a/{HALF}", "without lone surrogates"),
    *[
        (name, native, f"must be text, not {type(native).__name__}. {NATIVE}")
        for name in ("prompt", "negative_prompt")
        for native in (True, 3.1, float("inf"), 1j, b"a cat", ["a cat"], ("a cat", "a dog"), {"a": "cat"})
    ],
    ("prompt", None, f"must be text, not NoneType. {NATIVE}"),
    ("prompt", "", "must describe the image, in 1 to 1999 characters"),
    ("prompt", " \n\t", "must describe the image, in 1 to 1999 characters"),
    ("prompt", "x" * 2000, TOO_LONG),
    ("prompt", "猫" * 2000, TOO_LONG),
    ("prompt", "😀" * 2000, TOO_LONG),
    ("prompt", HALF, "without lone surrogates"),
    ("negative_prompt", [], "must be text, not list"),
    ("negative_prompt", "x" * 2000, TOO_LONG),
    ("negative_prompt", f"fog {HALF}", "without lone surrogates"),
    *[
        ("size", size, SIZE)
        for size in (
            "1024", "1024x", "x1024", "1024**768", "1024,768", "1024 768", "1024x1024x3", "-64x64",
            "64.0x64", "1e3x64",
            "１０２４x１０２４", "0x64", "64x0", "100000x64", "9" * 5000 + "x64", " ", 1024, (64, 64), True,
        )
    ],
    *[
        ("seed", seed, SEED)
        for seed in (
            -1, 2**31, 1.5, "-1", "2147483648", "42.5", "1e3", "1_000", "1,000", "1 000", "４２", "0x10",
            "--1", "abc", " ", True, False, float("nan"), float("inf"), float("-inf"), "nan", "inf", 1j, [1],
            b"42", 10**400, "9" * 400,
        )
    ],
    *[("steps", steps, STEPS) for steps in (0, 101, -1, 0.5, 100.5, "0", "101", "42.5", True, [20], 10**400)],
    *[
        ("guidance", guidance, GUIDANCE)
        for guidance in (
            1.49, 20.01, 0, -7, "1.499", "20.1", "1e1", "７", ".", "7,5", "high", True,
            float("nan"), float("inf"), "NaN", [7], 10**400,
        )
    ],
    *[
        ("image_url", url, IMAGE_URL)
        for url in (
            "http://", "https:///cat.png", "http://[::1", "/tmp/cat.png", "cat.png", "://cat", "s3://",  # noqa: S108
            "http:///cat.png",
            "see https://a.example/cat.png", "cat.png#from=https://a.example", " ",
            "data:image/png,https://a.example", "data:text/plain;base64,AAAA", "data:image/png;base64,", "data://a/b",
            ["https://a.example/1.png", "cat.png"], [["https://a.example/1.png"]], ["None"], [None],
            '["https://a.example/1.png", 5]', {"url": "https://a.example"}, {"https://a.example"},
            b"https://a.example", [b"https://a.example"], 5, True,
        )
    ],
    ("image_url", "['https://a.example/1.png']", NOT_JSON),
    ("image_url", f"https://a.example/{HALF}", "without lone surrogates"),
    *[
        ("loras", loras, LORAS)
        for loras in (
            {f"a/{n}": 1 / 7 for n in range(7)}, {"": 1.0}, {" ": 1.0}, {5: 1.0}, {HALF: 1.0},
            {"a/b": "much"}, {"a/b": True}, {"a/b": None}, {"a/b": float("nan")}, {"a/b": float("inf")},
            {"a/b": 10**400}, {"a/b": {"c/d": 1.0}}, {"a/b": [1.0]}, '{"a/b": NaN}', ["a/b"], {"a/b"}, 5,
            True, "  ",
        )
    ],
    ("loras", {"a/b": "1e0"}, f"{LORAS}; a weight must be a number"),
    ("loras", {"a/b": 0.5, "c/d": 0.49}, "these sum to 0.99"),
    ("loras", {"a/b": 0.5, "c/d": 0.50001}, "these sum to 1.00001"),
    ("loras", {"a/b": 1e308, "c/d": 1e308}, "these sum to inf"),
    ("loras", '{"a/b": 0.9}', "these sum to 0.9"),
    ("loras", "{'a/b': 1.0}", NOT_JSON),
    *[
        ("extra_parameters", extra, EXTRA)
        for extra in (
            {"a": {1}}, {"a": b"b"}, {"a": float("nan")}, {"a": [float("inf")]}, {"a": HALF}, {HALF: 1},
            {1: "a"}, {None: "a"}, ["a"], "a", "[1]", 5, True,
        )
    ],
    ("extra_parameters", "{'a': 1}", NOT_JSON),
    ("extra_parameters", {"seed": 1}, "must not contain seed: use the parameter of that name"),
    ("extra_parameters", {"steps": 1, "n": 1, "loras": "a"}, "must not contain loras, steps"),
    ("extra_parameters", '{"prompt": "a dog"}', "must not contain prompt"),
    ("extra_parameters", {"extra_parameters": {}}, "must not contain extra_parameters"),
]  # fmt: skip

# The given values, and what is sent for them.
GOOD: list[tuple[str, Any, Any]] = [
    ("model", " Qwen/Qwen-Image\n", "Qwen/Qwen-Image"),
    ("model", "模型", "模型"),
    *[(name, number, str(number)) for name in ("prompt", "negative_prompt") for number in (0, 1984, -15)],
    *[(name, "x" * 1999, "x" * 1999) for name in ("prompt", "negative_prompt")],
    *[(name, "猫" * 1999, "猫" * 1999) for name in ("prompt", "negative_prompt")],
    *[(name, "😀" * 1999, "😀" * 1999) for name in ("prompt", "negative_prompt")],
    ("prompt", " a cat\r\n", " a cat\r\n"),
    ("prompt", "a\x1b\x7f\u2028\u202ecat", "a\x1b\x7f\u2028\u202ecat"),
    ("size", "1024x768", "1024x768"),
    *[
        ("size", size, "1024x768")
        for size in (" 1024 X 0768 ", "1024X768", "1024*768", "1024×768", " 1024 * 768\n", "1024 × 768")
    ],
    *[("seed", seed, 42) for seed in (42, 42.0, "42", " 42 ", "42.0", "42.", "+42")],
    *[("seed", seed, 0) for seed in (0, "0", "-0", 0.0)],
    *[("seed", seed, 2147483647) for seed in (2147483647, "2147483647", 2147483647.0)],
    *[("steps", steps, 1) for steps in (1, "1")],
    *[("steps", steps, 100) for steps in (100, "100.0")],
    *[("guidance", guidance, 1.5) for guidance in (1.5, "1.5", " 1.50 ")],
    ("guidance", 20, 20),
    ("guidance", "20", 20.0),
    ("guidance", "7.", 7.0),
    *[
        ("image_url", url, url)
        for url in (
            "https://a.example/猫.png?a=b#c", "HTTP://A.EXAMPLE/CAT.PNG", "http://127.0.0.1:8000/", DATA_URI,
            "DATA:IMAGE/PNG;BASE64,AAAA", "data:image/svg+xml;charset=utf-8;base64,AAAA",
            ["https://a.example/1.png"], ["https://a.example/1.png", DATA_URI],
        )
    ],
    ("image_url", " https://a.example/1.png\n", "https://a.example/1.png"),
    ("image_url", ("https://a.example/1.png", DATA_URI), ["https://a.example/1.png", DATA_URI]),
    ("image_url", ' ["https://a.example/1.png"]', ["https://a.example/1.png"]),
    ("loras", " a/b ", "a/b"),
    ("loras", {"a/b": 1}, {"a/b": 1}),
    ("loras", {"a/b": "0.25", "c/d": 0.75}, {"a/b": 0.25, "c/d": 0.75}),
    ("loras", {"a/b": 0.3333333, "c/d": 0.6666667}, {"a/b": 0.3333333, "c/d": 0.6666667}),
    ("loras", {f"a/{n}": SIXTH for n in range(6)}, {f"a/{n}": SIXTH for n in range(6)}),
    ("loras", '{"a/b": 0.4, "c/d": "0.6"}', {"a/b": 0.4, "c/d": 0.6}),
]  # fmt: skip

STORED = [
    "s3://bucket/cat.png",
    "S3://conn@bucket/cat.png",
    "file:///tmp/cat.png",
    "gs://bucket/猫.png",
    "ftp://a.example/1.png",
]


def a_request(**parameters: Any) -> GenerationRequest:
    return GenerationRequest(**{"model": "some/model", "prompt": "a cat", **parameters})


def error_of(**parameters: Any) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        a_request(**parameters)
    return caught.value.message


def ids(rows: list[Any]) -> list[str]:
    return [f"{row[0]}-{ascii(row[1])[:30]}" for row in rows]


@pytest.mark.parametrize(("parameter", "value", "problem"), BAD, ids=ids(BAD))
def test_an_error_contains_parameter_value_and_allowed_range(
    parameter: str, value: Any, problem: str
) -> None:
    message = error_of(**{parameter: value})
    assert message.startswith(f"{LEAD}{parameter} = {repr(value)[:60]}")
    assert problem in message
    assert message.count(" = ") == 1


@pytest.mark.parametrize(("parameter", "given", "sent"), GOOD, ids=ids(GOOD))
def test_a_valid_value_is_sent_unchanged_in_the_type_of_the_api(
    parameter: str, given: Any, sent: Any
) -> None:
    body = a_request(**{parameter: given}).to_json()
    assert body == {"model": "some/model", "prompt": "a cat", parameter: sent}
    assert type(body[parameter]) is type(sent)


def test_one_final_error_reports_every_invalid_parameter() -> None:
    wrong: dict[str, Any] = {}
    for parameter, value, _ in BAD:
        wrong.setdefault(parameter, value)
    assert list(wrong) == [field.name for field in fields(GenerationRequest)]
    with pytest.raises(AirflowFailException) as caught:
        GenerationRequest(**wrong)
    listed = str(caught.value).removeprefix(LEAD).split("; ")
    assert [error.partition(" = ")[0] for error in listed] == list(wrong)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("seed", 10**5000),
        ("loras", {"a/b": 10**5000}),
        ("loras", '{"a":' * 100_000),
        ("loras", dict.fromkeys("abcdef", 10**308)),
        ("image_url", "[" * 100_000),
        ("image_url", nested(100_000)),
        ("extra_parameters", '{"a":' * 100_000),
        ("extra_parameters", {"a": nested(100_000)}),
        ("extra_parameters", {"a": 10**5000}),
        ("image_url", "data:image/png," + "A" * 100_000),
        ("size", "9" * 100_000),
    ],
    ids=range(11),
)
def test_a_huge_value_is_reported_like_any_other_and_truncated(parameter: str, value: Any) -> None:
    message = error_of(model="FLUX", **{parameter: value})
    assert f"{parameter} = " in message
    assert len(message) < 500


@pytest.mark.parametrize("nothing", [None, "", "None", "null", "[]", "{}", [], {}, ()], ids=repr)
@pytest.mark.parametrize(
    "parameter", ["size", "seed", "steps", "guidance", "image_url", "loras", "extra_parameters"]
)
def test_an_empty_optional_parameter_is_not_sent(parameter: str, nothing: Any) -> None:
    request = a_request(**{parameter: nothing})
    assert request == a_request()
    assert request.to_json() == request.summary() == {"model": "some/model", "prompt": "a cat"}


@pytest.mark.parametrize("nothing", [None, "", "None", "null"])
def test_an_empty_negative_prompt_is_not_sent(nothing: Any) -> None:
    assert "negative_prompt" not in a_request(negative_prompt=nothing).to_json()


@pytest.mark.parametrize(
    ("family", "least", "most", "model"),
    [
        *[
            ("Stable Diffusion", 64, 2048, model)
            for model in (
                "AI-ModelScope/stable-diffusion-v1-5",
                "stabilityai/stable-diffusion-xl-base-1.0",
                "someone/StableDiffusion",
                "someone/Stable Diffusion 3",
                "MusePublic/14_ckpt_SD_XL",
                "someone/sd1.5-anime",
                "someone/sd-3.5-large",
                "SDXL",
            )
        ],
        *[
            ("FLUX", 64, 1024, model)
            for model in (
                "black-forest-labs/FLUX.1-Krea-dev",
                "MusePublic/489_ckpt_FLUX_1",
                "someone/my-flux",
                "flux",
            )
        ],
        *[
            ("Qwen-Image", 64, 1664, model)
            for model in (
                "Qwen/Qwen-Image",
                "Qwen/Qwen-Image-Edit-2509",
                "Qwen/Qwen-Image-2512",
                "a/qwen_image_lora",
            )
        ],
        *[
            ("Z-Image", 512, 2048, model)
            for model in ("Tongyi-MAI/Z-Image-Turbo", "someone/z_image", "Z-Image")
        ],
    ],
)
def test_size_is_checked_against_the_range_of_the_model_family(
    family: str, least: int, most: int, model: str
) -> None:
    for size in (f"{least}x{most}", f"{most}x{least}"):
        assert a_request(model=model, size=size).size == size
    for size in (f"{least - 1}x{most}", f"{least}x{most + 1}", f"{most}x{least - 1}", f"{most + 1}x{least}"):
        message = error_of(model=model, size=size)
        limits = f"must be from {least}x{least} to {most}x{most} for {family} models"
        assert f"size = {size!r}: {limits}, or any size with check_ranges=False" in message


@pytest.mark.parametrize(
    "model",
    [
        "brand/new-model",
        "MAILAND/majicflus_v1",
        "Qwen/Qwen2.5-VL-7B",
        "black-forest-labs/FLUX.2-dev",
        "someone/flux-2-klein",
        "someone/flux3",
        "Qwen/Qwen-Image-2.0",
        "Tongyi-MAI/Z-Image-2.0",
        "FLUX/something-else",
        "stable-diffusion/something-else",
        "Qwen-Image/z/other",
        "someone/influx",
        "someone/jazz-image",
        "someone/wsd1",
        "someone/sd-card",
        "someone/flux-to-sdxl",
    ],
)
def test_any_size_is_valid_if_the_model_family_is_unknown(model: str) -> None:
    assert a_request(model=model, size="1x99999").size == "1x99999"


@pytest.mark.parametrize(
    ("parameter", "value", "sent"),
    [
        ("size", "2560*1440", "2560x1440"),
        ("guidance", 0, 0),
        ("guidance", "1.0", 1.0),
        ("guidance", 30.5, 30.5),
    ],
)
def test_ranges_of_size_and_guidance_need_not_be_checked(parameter: str, value: Any, sent: Any) -> None:
    given = {"model": "MusePublic/flux-high-res", parameter: value}
    assert error_of(**given)
    assert check_parameters(given)
    request = a_request(**given, check_ranges=False)
    assert request.to_json()[parameter] == sent
    assert "check_ranges" not in request.to_json() | request.summary()
    assert check_parameters(given, check_ranges=False) == []


@pytest.mark.parametrize(("parameter", "value", "problem"), BAD, ids=ids(BAD))
def test_everything_else_is_always_checked(parameter: str, value: Any, problem: str) -> None:
    if parameter == "guidance":
        value = {"guidance": value}  # never a number
    assert check_parameters({parameter: value}, check_ranges=False)


def test_a_request_with_all_parameters_is_sent_unchanged() -> None:
    asked: dict[str, Any] = {
        "model": "Qwen/Qwen-Image-Edit",
        "prompt": "一只金色的猫 😀",
        "negative_prompt": "模糊",
        "size": "1664x64",
        "seed": 7,
        "steps": 30,
        "guidance": 3.5,
        "image_url": ["https://a.example/1.png", DATA_URI],
        "loras": {"a/b": 0.25, "c/d": 0.75},
    }
    extra = {"n": None, "style": {"名": ["a", 1, 1.5, True]}, "true_cfg_scale": 4}
    body = GenerationRequest(**asked, extra_parameters=extra).to_json()
    assert body == {**asked, **extra}
    assert json.loads(json.dumps(body)) == body


def test_extra_parameters_may_be_json_text_and_nested() -> None:
    assert a_request(extra_parameters='{"a": [{"b": "猫"}]}').to_json()["a"] == [{"b": "猫"}]
    assert a_request(extra_parameters={"a": (1, 2)}).to_json()["a"] == [1, 2]
    assert a_request(extra_parameters={"a": nested(50)}).to_json()["a"] == nested(50)


def test_a_request_copies_its_mappings_and_lists() -> None:
    images, loras, extra = ["https://a.example/1.png"], {"a/b": 1.0}, {"a": [1]}
    request = a_request(image_url=images, loras=loras, extra_parameters=extra)
    before = json.dumps(request.to_json())
    images.append("cat.png")
    loras["c/d"] = 2.0
    extra["a"].append(2)
    assert json.dumps(request.to_json()) == before


@pytest.mark.parametrize("parameter", [field.name for field in fields(GenerationRequest)])
def test_a_request_is_frozen(parameter: str) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(a_request(), parameter, None)


@pytest.mark.parametrize("url", STORED)
def test_an_object_storage_path_is_valid_but_never_sent(url: str) -> None:
    for images, stored in ((url, [url]), ([DATA_URI, url, "HTTPS://a.example/1.png"], [url])):
        request = a_request(image_url=images)
        assert request.stored_images == stored
        with pytest.raises(InvalidRequestError, match="ModelScope cannot read object storage") as caught:
            request.to_json()
        assert str(caught.value).startswith(f"image_url = {url!r}: ")


@pytest.mark.parametrize("images", [None, DATA_URI, [DATA_URI, "https://a.example/1.png"]], ids=type)
def test_an_image_that_modelscope_can_read_is_not_stored(images: Any) -> None:
    assert a_request(image_url=images).stored_images == []


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://me:secret@a.example/1.png", "https://...@a.example/1.png"),
        ("HTTP://secret@a.example/1.png?a=secret", "HTTP://...@a.example/1.png?..."),
    ],
)
def test_a_password_in_an_image_url_is_sent_but_not_in_summaries(url: str, kept: str) -> None:
    request = a_request(image_url=url)
    assert request.to_json()["image_url"] == url
    assert request.summary()["image_url"] == kept
    for public in ("https://a.example/@1.png", "s3://conn@bucket/1.png"):
        assert a_request(image_url=public).summary()["image_url"] == public


def test_a_summary_shows_everything_but_the_bytes_of_images() -> None:
    long = "data:image/png;base64," + "A" * 10_000
    short = long[:280] + "... (10022 characters)"
    asked = {"seed": 0, "loras": {"a/b": 1.0}, "extra_parameters": {"n": 1}, "negative_prompt": "fog"}
    shown = {"model": "some/model", "prompt": "a cat", **asked}
    assert a_request(**asked).summary() == shown
    assert a_request(**asked, image_url=long).summary() == {**shown, "image_url": short}
    images = [long, long[:300], DATA_URI, "s3://bucket/cat.png"]
    assert a_request(image_url=images).summary()["image_url"] == [short, *images[1:]]
    assert a_request(image_url=long).to_json()["image_url"] == long


@pytest.mark.parametrize(("parameter", "value", "problem"), BAD, ids=ids(BAD))
def test_check_parameters_reports_a_single_invalid_parameter(
    parameter: str, value: Any, problem: str
) -> None:
    (error,) = check_parameters({parameter: value})
    assert error.startswith(f"{parameter} = {repr(value)[:60]}")
    assert problem in error


@pytest.mark.parametrize(("parameter", "given", "sent"), GOOD, ids=ids(GOOD))
def test_check_parameters_accepts_every_valid_value(parameter: str, given: Any, sent: Any) -> None:
    assert check_parameters({parameter: given}) == check_parameters({parameter: sent}) == []


def test_check_parameters_reports_what_the_request_would() -> None:
    given = {"model": "some/flux", "prompt": "", "size": "64x1025", "seed": "abc", "guidance": 7.5}
    errors = check_parameters(given)
    assert [error.partition(" = ")[0] for error in errors] == ["prompt", "seed", "size"]
    assert error_of(**given) == f"{LEAD}{'; '.join(errors)}."


def test_check_parameters_compares_size_and_model_if_given() -> None:
    assert check_parameters({}) == check_parameters({"size": "64x1025"}) == []
    assert check_parameters({"model": "some/flux", "size": None}) == []
    assert len(check_parameters({"size": "64x1025", "model": "some/flux"})) == 1


class TestNativeRendering:
    """A Dag with ``render_template_as_native_obj=True`` makes Python values of texts."""

    @staticmethod
    def rendered(template: str, prompt: str) -> Any:
        return NativeEnvironment().from_string(template).render(prompt=prompt)  # as Airflow does

    @pytest.mark.parametrize("prompt", ["1984", "a cat", "007", "-5"])
    def test_an_integer_is_sent_as_text(self, prompt: str) -> None:
        request = GenerationRequest(model="a/b", prompt=self.rendered("{{ prompt }}", prompt))
        assert request.prompt == prompt

    @pytest.mark.parametrize("prompt", ["3.10", "1e3", "True", "[1, 2]", "1, 2", "{'a': 1}"])
    def test_a_text_that_is_lost_is_refused(self, prompt: str) -> None:
        with pytest.raises(InvalidRequestError, match="render_template_as_native_obj"):
            GenerationRequest(model="a/b", prompt=self.rendered("{{ prompt }}", prompt))

    @pytest.mark.parametrize(
        "prompt", ["3.10", "1_000", "0x10", "True", "1, 2", "'😀'\n" + 'a long "line" ' * 20]
    )
    def test_the_filter_that_the_error_names_keeps_the_text(self, prompt: str) -> None:
        request = GenerationRequest(model="a/b", prompt=self.rendered("{{ prompt | pprint }}", prompt))
        assert request.prompt == prompt
