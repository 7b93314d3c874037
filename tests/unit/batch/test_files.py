"""Files of requests: equal rows from each format, and one clear error for each kind of bad file."""

from __future__ import annotations

import gzip
import json
import os
import sys
import tracemalloc
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_modelscope.batch.files import MAX_LINE
from airflow_provider_modelscope.batch.rows import Row, read_rows
from airflow_provider_modelscope.exceptions import InvalidRequestError, ModelScopeRetryableError
from airflow_provider_modelscope.protocol.request import GenerationRequest
from airflow_provider_modelscope.validation import INVALID
from tests.unit.images.conftest import AzureError, GoogleError, Store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.unit.images.conftest import Register

DEFAULTS = {"model": "Qwen/Qwen-Image", "size": "512x512"}


def parquet(columns: Mapping[str, Any], **options: Any) -> bytes:
    """Return a Parquet file."""
    pyarrow = pytest.importorskip("pyarrow", reason="an extra")
    from pyarrow.parquet import write_table

    file = BytesIO()
    write_table(pyarrow.table(columns), file, **options)
    return file.getvalue()


def rows(uri: str, storage_conn_id: str | None = None, **options: Any) -> list[Row]:
    return list(read_rows(uri, defaults=DEFAULTS, storage_conn_id=storage_conn_id, **options))


def stored(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return f"file://{folder}/{name}"


def rejection(uri: str) -> str:
    with pytest.raises(InvalidRequestError) as raised:
        rows(uri)
    message = str(raised.value)
    assert message.startswith(f"{INVALID}requests = {uri!r}: ")
    return message.removeprefix(f"{INVALID}requests = {uri!r}: ")


# Good files

OWN: list[dict[str, Any]] = [
    {
        "model": "a/b",
        "prompt": '一只猫, "quoted",\r\nin two lines',
        "negative_prompt": "dogs",
        "size": "64x64",
        "seed": 5,
        "steps": 30,
        "guidance": 7.5,
        "image_url": ["s3://bucket/cat.png", "https://a.example/1.png"],
        "loras": {"c/d": 0.5, "e/f": 0.5},
        "extra_parameters": {"sampler": "Euler a"},
        "key": "猫",
        "data": {"sku": 17, "tags": ["ä"]},
    },
    {"prompt": "a dog", "loras": {"g/h": 1.0}, "key": "17"},
    {"prompt": "a bird"},
]
NAMES = tuple(OWN[0])


def as_csv(end: str = "\n") -> bytes:
    def cell(value: Any) -> str:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return '"' + text.replace('"', '""') + '"'

    lines = [",".join(cell(row[name]) if name in row else "" for name in NAMES) for row in OWN]
    return end.join([",".join(NAMES), *lines, ""]).encode()


def as_jsonl(end: str = "\n") -> bytes:
    return end.join(json.dumps(row) for row in OWN).encode()


def as_parquet() -> bytes:
    return parquet({name: [row.get(name) for row in OWN] for name in NAMES})


def as_parquet_of_maps() -> bytes:
    pyarrow = pytest.importorskip("pyarrow", reason="an extra")
    columns: dict[str, Any] = {name: [row.get(name) for row in OWN] for name in NAMES}
    loras = [list(row["loras"].items()) if "loras" in row else None for row in OWN]
    columns["loras"] = pyarrow.array(loras, pyarrow.map_(pyarrow.string(), pyarrow.float64()))
    columns["data"] = [json.dumps(OWN[0]["data"]), None, None]
    columns["model"] = pyarrow.array(columns["model"]).dictionary_encode()
    return parquet(columns, row_group_size=1, compression="zstd")


GOOD = {
    "jsonl": ("a.jsonl", as_jsonl),
    "jsonl with CR LF, a BOM and blank lines": (
        "a.JSONL",
        lambda: b"\xef\xbb\xbf\r\n" + as_jsonl("\r\n \r\n\r\n") + b"\r\n\r\n",
    ),
    "csv": ("a.csv", as_csv),
    "csv with CR LF, a BOM and blank lines": (
        "a.CSV",
        lambda: b"\xef\xbb\xbf\r\n" + as_csv("\r\n\r\n") + b",,,,,,,,,,,\r\n\r\n",
    ),
    "parquet": ("a.parquet", as_parquet),
    "parquet with maps and JSON text": ("a.parquet", as_parquet_of_maps),
}


@pytest.mark.parametrize("protocol", ["file", "memory"])
@pytest.mark.parametrize(("name", "content"), GOOD.values(), ids=list(GOOD))
def test_each_format_gives_the_same_rows(
    name: str, content: Any, protocol: str, tmp_path: Path, memory: Store
) -> None:
    uri = stored(tmp_path, name, content())
    memory.pipe_file(f"bucket/{name}", content())
    requests = [
        GenerationRequest(**DEFAULTS | {name: own[name] for name in own if name not in ("key", "data")})
        for own in OWN
    ]
    assert rows(uri if protocol == "file" else f"memory://bucket/{name}") == [
        Row(number=1, key="猫", request=requests[0], data=OWN[0]["data"]),
        Row(number=2, key="17", request=requests[1]),
        Row(number=3, key="000003", request=requests[2]),
    ]


def test_a_line_of_jsonl_may_be_a_prompt(tmp_path: Path) -> None:
    uri = stored(tmp_path, "a.jsonl", b'"a cat"\n{"prompt": "a dog", "data": "[text]"}')
    assert [(row.request.prompt, row.data) for row in rows(uri)] == [("a cat", None), ("a dog", "[text]")]


def test_data_in_csv_is_text_or_json(tmp_path: Path) -> None:
    cells = ["17", "text", "true", '"[1, {""a"": null}]"', '" {}"']
    uri = stored(tmp_path, "a.csv", "\n".join(["data,prompt", *(f"{cell},a cat" for cell in cells)]).encode())
    assert [row.data for row in rows(uri)] == ["17", "text", "true", [1, {"a": None}], {}]


def test_integers_that_became_decimals_are_integers(tmp_path: Path) -> None:
    uri = stored(tmp_path, "a.csv", b"prompt,seed\na cat,42.0")
    assert [row.request.seed for row in rows(uri)] == [42]


def test_names_of_columns_may_have_spaces_around_them(tmp_path: Path) -> None:
    uri = stored(tmp_path, "a.csv", b"prompt , seed\na cat,5")
    assert [(row.request.prompt, row.request.seed) for row in rows(uri)] == [("a cat", 5)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b""),
        ("a.jsonl", b"\xef\xbb\xbf \r\n\n"),
        ("a.csv", b""),
        ("a.csv", b"\n\n"),
        ("a.csv", b"prompt,seed\n"),
        ("a.csv", b"prompt\n\n,,\n"),
    ],
)
def test_a_file_without_requests_yields_nothing(name: str, content: bytes, tmp_path: Path) -> None:
    assert rows(stored(tmp_path, name, content)) == []


def test_a_parquet_file_without_rows_yields_nothing(tmp_path: Path) -> None:
    assert rows(stored(tmp_path, "a.parquet", parquet({"prompt": []}))) == []


def test_an_image_of_ten_mebibytes_fits_a_line(tmp_path: Path) -> None:
    image = "data:image/png;base64," + "A" * 14_000_000
    content = json.dumps({"prompt": "a cat", "image_url": image}).encode()
    [row] = rows(stored(tmp_path, "a.jsonl", content))
    assert row.request.image_url == image


# Bad files

LINE = b'{"prompt": "a cat"}\n'
BAD: list[tuple[str, str, bytes | str, str]] = [
    ("Latin-1", "a.jsonl", LINE + '"café"'.encode("latin-1"), "line 2: is not UTF-8 at byte 25 of the"),
    ("GBK", "a.csv", "prompt\n一只猫在街上".encode("gbk"), "line 2: is not UTF-8 at byte 14 of the file"),
    ("UTF-16", "a.csv", "prompt\na cat".encode("utf-16"), "is UTF-16: save the file as UTF-8"),
    ("UTF-16 without BOM", "a.jsonl", '"a cat"'.encode("utf-16-le"), "line 1: contains a NUL byte, as"),
    ("a NUL", "a.jsonl", LINE + b'{"prompt": "a\0cat"}', "line 2: contains a NUL byte"),
    ("an escaped NUL", "a.jsonl", LINE + rb'{"prompt": "a\u0000cat"}', "line 2: prompt = 'a\\x00cat': must"),
    ("a NUL in data", "a.jsonl", LINE + rb'{"prompt": "a", "data": "\u0000"}', "line 2: data must not"),
    ("a surrogate", "a.jsonl", LINE + rb'"\ud800"', "line 2: prompt = '\\ud800': must be valid Unicode"),
    ("a surrogate in UTF-8", "a.jsonl", b'"\xed\xa0\x80"', "line 1: is not UTF-8 at byte 2"),
    ("no JSON", "a.jsonl", LINE + b"\n\na cat\n", "line 4: is not JSON: Expecting value at character 1"),
    ("Python", "a.jsonl", b"{'prompt': 'a cat'}", "line 1: is not JSON: Expecting property name"),
    ("cut off", "a.jsonl", LINE + LINE[:15], "line 2: is not JSON: Unterminated string starting at char"),
    ("two on a line", "a.jsonl", LINE.strip() * 2, "line 1: is not JSON: Extra data at character 20"),
    ("CR alone", "a.jsonl", (LINE + LINE).replace(b"\n", b"\r"), "line 1: is not JSON: Extra data"),
    ("an array", "a.jsonl", b'[\n{"prompt": "a cat"}\n]', "line 1: is an array: write one object or string"),
    ("a list on a line", "a.jsonl", LINE + b'["a cat"]', "line 2: must be a prompt or a mapping, not list"),
    ("a number", "a.jsonl", LINE + b"17", "line 2: must be a prompt or a mapping, not int"),
    ("null", "a.jsonl", LINE + b"null", "line 2: must be a prompt or a mapping, not NoneType"),
    ("NaN", "a.jsonl", LINE + b'{"prompt": "a", "guidance": NaN}', "line 2: is not JSON: NaN is no JSON"),
    ("infinite", "a.jsonl", LINE + b'{"prompt": "a", "data": 1e999}', "line 2: data must be JSON (Out of"),
    ("huge", "a.jsonl", b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "line 1: is not JSON: Exceeds"),
    ("a name twice", "a.jsonl", b'{"prompt": "a", "prompt": "b"}', "line 1: is not JSON: it contains"),
    ("twice inside", "a.jsonl", b'{"prompt": "a", "data": {"x": 1, "x": 2}}', "line 1: is not JSON: it"),
    ("nested", "a.jsonl", b'{"prompt": "a", "data": ' + b"[" * 200 + b"]" * 200 + b"}", "line 1: is nested"),
    ("a nesting bomb", "a.jsonl", LINE + b'{"data": ' + b"[" * 1_000_000, "line 2: is not JSON: it is"),
    ("no prompt", "a.jsonl", LINE + b"{}", "line 2: prompt is missing"),
    ("an empty string", "a.jsonl", LINE + b'""', "line 2: prompt = '': must describe the image"),
    ("a wrong name", "a.jsonl", LINE + b'{"promt": "a"}', "line 2: unknown parameter 'promt' (did you mean"),
    ("a wrong value", "a.jsonl", LINE + b'{"prompt": "a", "seed": -1}', "line 2: seed = -1: must be an"),
    ("a key twice", "a.jsonl", b'{"prompt": "a", "key": "k"}\n' * 2, "line 2: key = 'k': line 1 has the"),
    ("a path as key", "a.jsonl", b'{"prompt": "a", "key": "../k"}', "line 1: key = '../k': must not"),
    ("a long line", "a.jsonl", LINE + b" " * (MAX_LINE + 1), "line 2: is longer than 20 MiB"),
    ("no end of line", "a.csv", b"prompt" + b"x" * MAX_LINE, "line 1: is longer than 20 MiB"),
    ("gzip", "a.jsonl", gzip.compress(LINE), "is compressed with gzip: decompress it"),
    ("a workbook", "a.csv", b"PK\x03\x04xl", "is a workbook or a zip file: save it as CSV in UTF-8"),
    ("Parquet", "a.jsonl", b"PAR1xxxxPAR1", "is a Parquet file: end its name with .parquet"),
    ("HTML", "a.jsonl", b"<!DOCTYPE html>\n<html>", "line 1: is not JSON: Expecting value at character 1"),
    ("HTML", "a.csv", b"<!DOCTYPE html>\n<html>", "line 1: unknown column '<!DOCTYPE html>'"),
    ("no header", "a.csv", b"a cat\na dog", "line 1: unknown column 'a cat' (allowed are model, prompt"),
    ("no prompt", "a.csv", b"seed,key\n1,a", "line 1: no column is named prompt: the header must name the"),
    ("semicolons", "a.csv", b"prompt;seed\na cat;1", "line 1: its columns are separated by ';': save the"),
    ("tabs", "a.csv", b"prompt\tseed\na cat\t1", "line 1: its columns are separated by '\\t': save the"),
    ("a wrong column", "a.csv", b"prompt,sede\na cat,1", "line 1: unknown column 'sede' (did you mean"),
    ("a column twice", "a.csv", b"prompt,seed,seed\na,1,2", "line 1: column 'seed' occurs twice"),
    ("a nameless column", "a.csv", b",prompt\n0,a cat", "line 1: column 1 has no name: name or delete it"),
    ("a cell more", "a.csv", b"prompt,seed\na cat, a dog,5", "line 2: must have 2 cells, as the header, not"),
    ("a cell less", "a.csv", b"prompt,seed\n\na cat\n", "line 3: must have 2 cells, as the header, not 1"),
    ("an open quote", "a.csv", b'prompt\n"a cat\n', "line 2: is not CSV (unexpected end of data): check"),
    ("a quote inside", "a.csv", b'prompt\n"a" cat\n', "line 2: is not CSV (',' expected after '\"'): check"),
    ("a long cell", "a.csv", b'prompt\n"' + b"a cat\n" * 30_000, "line 2: is not CSV (field larger than"),
    ("CR alone", "a.csv", b"prompt\ra cat\ra dog", "line 1: is not CSV (new-line character seen"),
    ("lines in a cell", "a.csv", b'prompt,seed\n"a\nb\nc",1\nd,x', "line 5: seed = 'x': must be an integer"),
    ("data that is no JSON", "a.csv", b"prompt,data\na,{x", "line 2: data is not JSON, although it starts"),
    ("a NUL", "a.csv", b"prompt,data\na,\0", "line 2: contains a NUL byte"),
    ("a prompt of spaces", "a.csv", b"prompt,seed\n ,1", "line 2: prompt = ' ': must describe the image"),
    ("empty", "a.parquet", b"", "cannot be read as Parquet (Parquet file size is 0 bytes"),
    ("JSONL", "a.parquet", LINE, "cannot be read as Parquet (Parquet magic bytes not found"),
    ("cut off", "a.parquet", b"PAR1" + bytes(100), "cannot be read as Parquet (Parquet magic bytes not"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "problem"), [row[1:] for row in BAD], ids=[f"{row[1][2:]}-{row[0]}" for row in BAD]
)
def test_a_bad_file_is_rejected(name: str, content: bytes, problem: str, tmp_path: Path) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="an extra")
    message = rejection(stored(tmp_path, name, content))
    assert message.startswith(problem)
    assert len(message) < 1500


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"seed": [1]}, "no column is named prompt"),
        ({"prompt": ["a cat"], "sede": [1]}, "unknown column 'sede' (did you mean seed?)"),
        ({"prompt": ["a cat"], "__index_level_0__": [1]}, "unknown column '__index_level_0__'"),
        ({"prompt": ["a cat", None]}, "row 2: prompt is missing"),
        ({"prompt": [b"a cat"]}, "row 1: prompt = b'a cat': must be text, not bytes"),
        ({"prompt": ["a cat"], "data": [b"x"]}, "row 1: data must be JSON (Object of type bytes"),
        ({"prompt": ["a cat"], "data": ["{x"]}, "row 1: data is not JSON, although it starts with '{'"),
        ({"prompt": ["a cat"], "data": [float("nan")]}, "row 1: data must be JSON"),
        ({"prompt": ["a cat"], "loras": [{"a/b": 0.5}]}, "row 1: loras = {'a/b': 0.5}: must be"),
    ],
)
def test_a_bad_parquet_file_is_rejected(columns: Mapping[str, Any], problem: str, tmp_path: Path) -> None:
    assert rejection(stored(tmp_path, "a.parquet", parquet(columns))).startswith(problem)


def test_a_damaged_parquet_file_is_rejected(tmp_path: Path) -> None:
    content = parquet({"prompt": [os.urandom(50).hex() for _ in range(1000)]}, compression="gzip")
    for damaged in (content[:-100], content[:1000] + bytes(2000) + content[3000:]):
        assert "cannot be read as Parquet (" in rejection(stored(tmp_path, "a.parquet", damaged))


def test_parquet_needs_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = rejection(stored(tmp_path, "a.parquet", b"PAR1"))
    assert message == (
        "Parquet needs pyarrow: run pip install 'airflow-provider-modelscope[parquet]' on every worker."
    )


def test_an_error_hides_what_a_line_contains(tmp_path: Path) -> None:
    secret = "https://a.example/1.png?sig=SIGNED"
    lines: Sequence[Any] = [
        {"prompt": "a cat", "image_url": f" x {secret}"},
        {"prompt": "a cat", "image_url": [secret, "x"]},
        {"prompt": "a cat", "data": secret * 10_000},
        {"prompt": "a cat", secret: 1},
    ]
    content = "\n".join([*map(json.dumps, lines), f'{{"image_url": "{secret}"']).encode()
    message = rejection(stored(tmp_path, "a.jsonl", content))
    assert [f"line {number}: " in message for number in range(1, 6)] == [True] * 5
    assert "SIGNED" not in message


# Where a file is


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("missing.jsonl", "FileNotFoundError: "),
        ("no/such/folder.csv", "FileNotFoundError: "),
        ("folder.jsonl", "IsADirectoryError: is a folder or a device|FileNotFoundError: "),
        ("folder.jsonl/", "IsADirectoryError: is a folder or a device|FileNotFoundError: "),
    ],
)
@pytest.mark.parametrize("protocol", ["file", "memory"])
def test_an_object_that_is_no_file_is_a_final_error(
    path: str, problem: str, protocol: str, tmp_path: Path, memory: Store
) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    memory.pipe_file("bucket/folder.jsonl/x", b"")
    uri = f"file://{tmp_path}/{path}" if protocol == "file" else f"memory://bucket/{path}"
    with pytest.raises(InvalidRequestError, match=rf"cannot be read \(({problem})"):
        rows(uri)


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    assert "is a folder or a device" in rejection(f"file://{tmp_path}/a.jsonl")


@pytest.mark.parametrize(
    ("uri", "storage_conn_id", "problem"),
    [
        ("unheard-of://bucket/a.csv", None, "cannot be opened"),
        ("memory://bucket/a.csv", "nowhere", "nowhere.*define that connection"),
        ("file://folder/a.csv", None, "a local path has three slashes"),
        ("s3://bucket/../a.csv", None, "must not contain the folders"),
        ("s3://bucket/a.csv", 17, "must be the id of an Airflow connection"),
    ],
)
def test_a_store_that_cannot_be_opened_is_a_final_error(
    uri: str, storage_conn_id: Any, problem: str, memory: Store
) -> None:
    with pytest.raises(InvalidRequestError, match=f"{INVALID}(requests|storage_conn_id) = .*{problem}"):
        rows(uri, storage_conn_id)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (PermissionError("Access Denied"), InvalidRequestError),
        (AzureError("not this account", 403), InvalidRequestError),
        (GoogleError("busy", 503), ModelScopeRetryableError),
        (ConnectionResetError("reset by peer"), ModelScopeRetryableError),
        (OSError(28, "No space left on device"), ModelScopeRetryableError),
    ],
)
@pytest.mark.parametrize("method", ["_open", "read"])
def test_a_temporary_error_of_a_store_is_retryable(
    fault: Exception, error: type[Exception], method: str, register: Register
) -> None:
    class Failing(Store):
        def _open(self, *_: Any, **__: Any) -> Any:
            if method == "_open":
                raise fault
            return FailingFile(LINE * 100_000)

    class FailingFile(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 0:
                raise fault
            return super().read(size)

    register("s3", Failing())
    with pytest.raises(error, match=rf"requests = 's3://bucket/a.csv': .*{fault.args[-1]}") as raised:
        rows("s3://bucket/a.csv")
    assert "nothing was sent" in str(raised.value).lower()


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that opens and cannot be read")
def test_an_error_while_a_file_is_read_is_retryable(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to("/proc/self/mem")
    with pytest.raises(ModelScopeRetryableError, match=r"cannot be read \(OSError: Input/output error\)"):
        rows(f"file://{tmp_path}/a.jsonl")


@pytest.mark.parametrize("uri", ["s3://mine@bucket/a.jsonl", "s3://bucket/a.jsonl"])
def test_the_connection_opens_the_store(
    uri: str, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MINE", '{"conn_type": "aws", "host": "mine.example"}')
    s3 = register("s3")
    s3.pipe_file("bucket/a.jsonl", LINE)
    assert len(rows(uri, None if "@" in uri else "mine")) == 1
    assert s3.opened_with == ["mine.example"]


# Memory


@pytest.mark.parametrize(
    ("protocol", "suffix"), [("file", "jsonl"), ("file", "csv"), ("file", "parquet"), ("memory", "jsonl")]
)
def test_memory_grows_only_by_the_keys(protocol: str, suffix: str, tmp_path: Path, memory: Store) -> None:
    prompts = [os.urandom(950).hex() for _ in range(10_000)]  # no two alike: Parquet would store one

    def content(count: int) -> bytes:
        if suffix == "parquet":
            return parquet({"prompt": prompts[:count], "data": prompts[:count]})
        if suffix == "csv":
            return "\n".join(["prompt,data", *(f"{one},{one}" for one in prompts[:count])]).encode()
        return "\n".join(json.dumps({"prompt": one, "data": one}) for one in prompts[:count]).encode()

    def peak(count: int) -> int:
        if protocol == "memory":
            memory.pipe_file(f"bucket/a.{suffix}", content(count))
            uri = f"memory://bucket/a.{suffix}"
        else:
            uri = stored(tmp_path, f"a.{suffix}", content(count))
        tracemalloc.start()
        try:
            assert sum(1 for _ in read_rows(uri, defaults=DEFAULTS)) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)  # imports modules
    assert peak(10_000) - peak(100) < 10_000 * 400  # of the 3800 bytes that a row has


def test_a_long_line_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.truncate(10 * MAX_LINE)
    tracemalloc.start()
    try:
        assert "line 1: is longer than 20 MiB" in rejection(f"file://{tmp_path}/a.jsonl")
        assert tracemalloc.get_traced_memory()[1] < 3 * MAX_LINE
    finally:
        tracemalloc.stop()
