"""Provenance of images: in a sidecar, in their metadata, and printed by the command."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image as Pillow

from airflow_provider_modelscope import __version__
from airflow_provider_modelscope.exceptions import InvalidDestinationError
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.images.image import Image
from airflow_provider_modelscope.images.object_storage import Destination
from airflow_provider_modelscope.images.parts import Part, parts_of, spliced
from airflow_provider_modelscope.operators.image_generation import ModelScopeImageGenerationOperator
from airflow_provider_modelscope.protocol.request import GenerationRequest
from airflow_provider_modelscope.provenance.__main__ import main, read_provenance
from airflow_provider_modelscope.provenance.record import IPTC, LABEL, MADE_BY_AI, NAMESPACE, Provenance
from airflow_provider_modelscope.provenance.xmp import Property, packet_of, properties_of, with_properties
from airflow_provider_modelscope.tasks.storing import fetch_finished_generation
from airflow_provider_modelscope.xcoms import StoredImage, Submission
from tests.unit.builders import submissions
from tests.unit.images.conftest import Register, Store

if TYPE_CHECKING:
    from airflow_provider_modelscope.emulator import Emulator

STORED = StoredImage(
    uri="s3://bucket/42-1.png",
    storage_conn_id=None,
    content_type="image/png",
    width=1,
    height=1,
    size_bytes=1,
    sha256="00" * 32,
    seed=None,
    model=None,
    generation_id="42",
    parameters={},
    duration_ms=None,
)
STORED_BY: dict[str, Any] = {
    "content_credentials": False,
    "stored_at": 1.0,
    "dag_id": "a_dag",
    "run_id": "a_run",
    "task_id": "a_task",
    "map_index": -1,
}
PROMPT = (
    '金色的猫 & "dogs" <script>alert(1)</script>\nsecond line 🐈 👩\u200d🚀 '
    "https://x.example/a?b=1  می\u200cخواهم\u3000\tend "
)
REQUEST: dict[str, Any] = {
    "model": "Qwen/Qwen-Image",
    "prompt": PROMPT,
    "negative_prompt": "blur",
    "size": "96x64",
    "loras": {"a/b": 0.4, "c/d": 0.6},
}

pytestmark = pytest.mark.usefixtures("no_pauses")


def drawn(folder: Path, context: Any, name: str = "cat.png", **options: Any) -> Path:
    """Make an image with the one-step operator, and return its file."""
    parameters = {**REQUEST, "destination": f"file://{folder}/{name}", **options}
    [uri] = ModelScopeImageGenerationOperator(task_id="draw", **parameters).execute(context)
    return Path(uri.removeprefix("file://"))


def own_properties(file: Path) -> dict[str, str]:
    properties = properties_of(packet_of(BytesIO(file.read_bytes())) or "")
    return {name: text for (namespace, name), text in properties.items() if namespace == NAMESPACE}


def xmp_chunk(png: bytes) -> Part:
    [part] = [
        part for part in parts_of(BytesIO(png), "PNG") if b"adobe.xmp" in png[part.start : part.data + 20]
    ]
    return part


class TestSidecar:
    def test_it_contains_all_facts(self, emulator: Emulator, context: Any, tmp_path: Path) -> None:
        file = drawn(tmp_path, context, sidecar=True)
        facts = json.loads((tmp_path / "cat.png.json").read_text())
        [image] = context["ti"].pushed["images"]
        assert image["sidecar_uri"] == f"file://{file}.json"
        submitted_at, stored_at = facts.pop("submitted_at"), facts.pop("stored_at")
        assert submitted_at <= stored_at
        assert submitted_at.endswith("+00:00")
        assert facts.pop("request_id")
        assert facts == {
            "uri": image["uri"],
            **{name: image[name] for name in ("sha256", "size_bytes", "content_type", "width", "height")},
            "content_credentials": False,
            "seed": image["seed"],
            "model": "Qwen/Qwen-Image",
            "asked_model": None,
            "generation_id": image["generation_id"],
            "request": REQUEST,
            "parameters_used": {
                "seed": image["seed"], "width": 96, "height": 64, "guidanceScale": 7.5,
                "numInferenceSteps": 30, "sampler": "Euler a", "prompt": PROMPT, "negativePrompt": "blur",
            },
            "duration_ms": image["duration_ms"],
            "credit": 1,
            "dag_id": "a_dag",
            "run_id": "a_run",
            "task_id": "a_task",
            "map_index": -1,
            "provider": f"airflow-provider-modelscope {__version__}",
        }  # fmt: skip

    def test_it_is_stored_only_on_request(self, emulator: Emulator, context: Any, tmp_path: Path) -> None:
        file = drawn(tmp_path, context)
        assert list(tmp_path.iterdir()) == [file]
        assert context["ti"].pushed["images"][0]["sidecar_uri"] is None

    def test_it_contains_no_signature_and_no_image(self, emulator: Emulator) -> None:
        generation = fetch_finished_generation(ModelScopeHook(), submitted())
        used = {
            "image_url": "https://images.example/a.png?Signature=secret",
            "nested": [{"source": f"data:image/png;base64,{'A' * 9000}"}],
            "deep": [[[[[[[["so deep"]]]]]]]],
            "text": "is this a://b?c d",
        }
        provenance = Provenance(generation=replace(generation, parameters=used), submission=None)
        document = provenance.document(STORED, **STORED_BY)
        assert b"secret" not in document
        assert b"so deep" not in document
        assert len(document) < 2000
        assert json.loads(document)["parameters_used"]["text"] == used["text"]

    def test_halves_of_surrogate_pairs_are_replaced(self, emulator: Emulator) -> None:
        generation = fetch_finished_generation(ModelScopeHook(), submitted())
        provenance = Provenance(generation=replace(generation, parameters={"x": "\ud83d"}), submission=None)
        assert json.loads(provenance.document(STORED, **STORED_BY))

    def test_a_storage_error_names_it(self, tmp_path: Path) -> None:
        (tmp_path / "1-1.png.json").mkdir()
        destination = Destination.parse(f"file://{tmp_path}/")
        with pytest.raises(InvalidDestinationError, match=r"1-1\.png\.json.*cannot be written"):
            destination.store_sidecar(f"file://{tmp_path}/1-1.png", b"{}", generation_id="1")

    @pytest.mark.parametrize("name", ["cat.png", f"{'x' * 247}.png"], ids=["a folder", "a long name"])
    def test_an_obstacle_is_found_before_anything_is_charged(
        self, emulator: Emulator, context: Any, tmp_path: Path, name: str
    ) -> None:
        (tmp_path / "cat.png.json").mkdir()
        with pytest.raises(InvalidDestinationError, match="its sidecar "):
            drawn(tmp_path, context, name, sidecar=True)
        assert not emulator.requests


def submitted() -> str:
    return ModelScopeHook().submit_generation(GenerationRequest(**REQUEST))


class TestEmbedded:
    @pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
    def test_the_file_contains_provenance_and_the_services_label(
        self, emulator: Emulator, context: Any, tmp_path: Path, suffix: str
    ) -> None:
        file = drawn(tmp_path, context, f"cat.{suffix}", embed_metadata=True)
        packet = packet_of(BytesIO(file.read_bytes())) or ""
        [served] = emulator.served.values()
        label = (packet_of(BytesIO(served)) or "").split("<rdf:RDF", 1)[1].split("</rdf:RDF>")[0]
        assert label in packet
        properties = properties_of(packet)
        assert properties[IPTC, "DigitalSourceType"] == MADE_BY_AI
        assert LABEL in properties
        [image] = context["ti"].pushed["images"]
        assert own_properties(file) == {
            "generation_id": image["generation_id"],
            "model": "Qwen/Qwen-Image",
            "prompt": PROMPT,
            "negative_prompt": "blur",
            "size": "96x64",
            "loras": '{"a/b": 0.4, "c/d": 0.6}',
            "seed": str(image["seed"]),
            "steps": "30",
            "guidance": "7.5",
        }
        assert image["size_bytes"] == file.stat().st_size
        with Pillow.open(file) as opened:
            assert PROMPT.split(" ")[0] in opened.info["xmp"].decode()

    def test_no_pixel_changes(self, emulator: Emulator, context: Any, tmp_path: Path) -> None:
        file = drawn(tmp_path, context, embed_metadata=True)
        [served] = emulator.served.values()
        with Pillow.open(file) as embedded, Image.from_bytes(served) as original:
            assert embedded.tobytes() == Pillow.open(original.file).tobytes()

    def test_no_byte_outside_the_packet_changes(
        self, emulator: Emulator, context: Any, tmp_path: Path
    ) -> None:
        content = drawn(tmp_path, context, embed_metadata=True).read_bytes()
        [served] = emulator.served.values()
        before, after = (xmp_chunk(each) for each in (served, content))
        assert content[: after.start] == served[: before.start]
        assert content[after.end :] == served[before.end :]

    @pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
    def test_pixels_are_neither_decoded_nor_held_in_memory(
        self, emulator: Emulator, tmp_path: Path, format_: str
    ) -> None:
        file = BytesIO()
        Pillow.effect_noise((2000, 2000), 90).save(file, format_, quality=100)
        provenance = Provenance(
            generation=fetch_finished_generation(ModelScopeHook(), submitted()), submission=None
        )
        with Image.from_file(file) as image:
            tracemalloc.start()
            embedded = provenance.embedded_in(image)
            assert embedded.sha256 != image.sha256
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert embedded.length > image.length > 2_000_000
            assert most < 1_000_000
            assert embedded.sha256 == hashlib.sha256(embedded.content).hexdigest()

    def test_an_image_without_room_stays_unchanged_with_a_warning(
        self, emulator: Emulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        Pillow.new("RGB", (4, 4)).save(tmp_path / "cat.gif")
        provenance = Provenance(
            generation=fetch_finished_generation(ModelScopeHook(), submitted()),
            submission=Submission(generation_id="42", model="a/b", submitted_at=5.0, request=REQUEST),
        )
        with Image.from_bytes((tmp_path / "cat.gif").read_bytes()) as gif:
            assert provenance.embedded_in(gif) is gif
        assert "Storing the GIF of generation" in caplog.text

    def test_urls_of_source_images_are_not_embedded(
        self, emulator: Emulator, context: Any, tmp_path: Path
    ) -> None:
        source = drawn(tmp_path, context, "source.png")
        given = {"image_url": f"file://{source}", "extra_parameters": {"mask": "s3://conn@bucket/mask.png"}}
        file = drawn(tmp_path, context, "edited.png", embed_metadata=True, sidecar=True, **given)
        assert {"image_url", "extra_parameters"}.isdisjoint(own_properties(file))
        assert json.loads((tmp_path / "edited.png.json").read_text())["request"]["image_url"]

    def test_no_signature_of_extra_parameters_is_kept(
        self, emulator: Emulator, context: Any, tmp_path: Path
    ) -> None:
        mask = "https://user:secret@images.example/a.png?Signature=secret"
        drawn(tmp_path, context, sidecar=True, embed_metadata=True, extra_parameters={"masks": [mask]})
        assert submissions(emulator)[0].json["masks"] == [mask]
        files = [str(file.read_bytes()) for file in tmp_path.iterdir()]
        for kept in (json.dumps(context["ti"].pushed), *files):
            assert "secret" not in kept

    def test_the_sidecar_has_the_checksum_of_the_stored_image(
        self, emulator: Emulator, context: Any, tmp_path: Path
    ) -> None:
        file = drawn(tmp_path, context, embed_metadata=True, sidecar=True)
        assert read_provenance(str(file))["cat.png.json"]["sha256"] == read_provenance(str(file))["sha256"]


class TestCommand:
    def test_it_prints_the_file_and_its_sidecar(
        self, emulator: Emulator, context: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = drawn(tmp_path, context, embed_metadata=True, sidecar=True)
        assert main([str(file)]) == 0
        printed = capsys.readouterr().out
        for line in (
            "file: PNG, 96x64",
            "AIGC label: {",
            f"digital source type: {MADE_BY_AI}",
            "model: Qwen/Qwen-Image",
            "negative_prompt: blur",
            "cat.png.json: {",
            '"dag_id": "a_dag"',
        ):
            assert line in printed

    def test_an_image_without_provenance_is_reported(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Pillow.new("RGB", (4, 4)).save(tmp_path / "plain.png")
        assert main([str(tmp_path / "plain.png")]) == 0
        assert "No provenance found" in capsys.readouterr().out

    def test_metadata_cannot_forge_facts_about_the_file(self, tmp_path: Path) -> None:
        Pillow.new("RGB", (4, 4)).save(tmp_path / "plain.png")
        forged = [Property(namespace=NAMESPACE, prefix="own", name="sha256", text="f00d")]
        with (tmp_path / "plain.png").open("rb") as file:
            content = spliced(file, with_properties(file, forged, own_namespace=NAMESPACE)).read()
        (tmp_path / "plain.png").write_bytes(content)
        (tmp_path / "plain.png.json").write_text('{"sha256": "f00d"}')
        assert read_provenance(str(tmp_path / "plain.png"))["sha256"] == hashlib.sha256(content).hexdigest()
        assert "another image" in read_provenance(str(tmp_path / "plain.png"))["plain.png.json"]

    def test_a_sidecar_of_another_image_is_not_used(self, tmp_path: Path) -> None:
        Pillow.new("RGB", (4, 4)).save(tmp_path / "plain.png")
        (tmp_path / "plain.png.json").write_text('{"sha256": "00"}')
        assert "another image" in read_provenance(str(tmp_path / "plain.png"))["plain.png.json"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "there is no such file"),
            (b"no image", "Not a complete image"),
            (b"", "Not a complete image"),
        ],
        ids=str,
    )
    def test_a_file_that_is_no_image_is_an_error(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, message: str
    ) -> None:
        file = tmp_path / "cat.png"
        if content is not None:
            file.write_bytes(content)
        assert main([str(file)]) == 1
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize(
        "text",
        ["[]", "no json", "\ud83d".encode(errors="surrogatepass"), "[" * 99_999, f"[{'9' * 9999}]"],
        ids=["a list", "no JSON", "no UTF-8", "too deep", "a huge number"],
    )
    def test_an_invalid_sidecar_is_an_error(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | bytes
    ) -> None:
        Pillow.new("RGB", (4, 4)).save(tmp_path / "cat.png")
        (tmp_path / "cat.png.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        assert main([str(tmp_path / "cat.png")]) == 1
        assert "cat.png.json is not a sidecar" in capsys.readouterr().err

    def test_texts_can_neither_forge_lines_nor_control_a_terminal(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        written = BytesIO()
        Pillow.new("RGB", (4, 4)).save(written, "PNG")
        odd = [Property(namespace=NAMESPACE, prefix="own", name="prompt", text="a\nsha256: f00d\x9b31m")]
        content = spliced(written, with_properties(written, odd, own_namespace=NAMESPACE)).read()
        (tmp_path / "cat.png").write_bytes(content)
        sidecar = {"sha256": hashlib.sha256(content).hexdigest(), "model": "\ud83d\x9b31m"}
        (tmp_path / "cat.png.json").write_text(json.dumps(sidecar))
        assert main([str(tmp_path / "cat.png")]) == 0
        printed = capsys.readouterr().out
        assert "\nprompt: a\n  sha256: f00d\ufffd31m\n" in printed
        assert '"model": "\ufffd\ufffd31m"' in printed

    @pytest.mark.parametrize("scheme", ["", "file://", "local://", "FILE://"])
    def test_a_local_file_may_be_a_uri(self, tmp_path: Path, scheme: str) -> None:
        Pillow.new("RGB", (4, 4)).save(tmp_path / "100%.png")
        assert read_provenance(f"{scheme}{tmp_path}/100%.png")["file"].startswith("PNG, 4x4")

    @pytest.mark.parametrize("name", ["cat.png", "cat.png.json"])
    def test_a_pipe_is_not_read(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
        Pillow.new("RGB", (4, 4)).save(tmp_path / "cat.png")
        (tmp_path / name).unlink(missing_ok=True)
        os.mkfifo(tmp_path / name)
        assert main([str(tmp_path / "cat.png")]) == 1
        assert "is a folder or a device" in capsys.readouterr().err

    @pytest.mark.parametrize("arguments", [[], ["a", "b"], ["a", "--conn-id"]], ids=str)
    def test_wrong_arguments_print_its_usage(
        self, capsys: pytest.CaptureFixture[str], arguments: list[str]
    ) -> None:
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert "usage: python -m airflow_provider_modelscope.provenance" in capsys.readouterr().err


class TestCommandWithURI:
    def test_the_object_and_its_sidecar_are_read(
        self,
        emulator: Emulator,
        context: Any,
        memory: Store,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_MY_STORE", '{"conn_type": "generic", "host": "store.example"}')
        drawing = {**REQUEST, "destination": "memory://my_store@bucket/cat.png"}
        [uri] = ModelScopeImageGenerationOperator(
            task_id="draw", sidecar=True, embed_metadata=True, **drawing
        ).execute(context)
        assert uri == "memory://bucket/cat.png"
        for arguments in ([uri, "--conn-id", "my_store"], ["memory://my_store@bucket/cat.png"]):
            assert main(arguments) == 0
            printed = capsys.readouterr().out
            assert "model: Qwen/Qwen-Image" in printed
            assert "cat.png.json: {" in printed
        assert set(memory.opened_with) == {"store.example"}

    @pytest.mark.parametrize(
        ("uri", "message"),
        [
            ("memory://bucket/none.png", "memory://bucket/none.png: there is no such file or object"),
            ("memory://bucket/text.png", "memory://bucket/text.png: Not a complete image"),
            ("memory://bucket/folder/", "names no object: write it as in s3://bucket/folder/name.png"),
            ("memory://bucket", "names no object"),
            ("memory:///cat.png", "names no object"),
            ("memory://[bucket/cat.png", "memory://[bucket/cat.png: Invalid IPv6 URL"),
            ("nowhere://bucket/cat.png", "IMAGE = 'nowhere://bucket/cat.png': cannot be opened"),
            ("memory://missing@bucket/cat.png", "define that connection, or name another in --conn-id"),
            (f"file://{Path(__file__).parent}", "cannot be read (IsADirectoryError"),
        ],
    )
    def test_what_cannot_be_read_is_an_error(
        self, memory: Store, capsys: pytest.CaptureFixture[str], uri: str, message: str
    ) -> None:
        memory.pipe_file("bucket/text.png", b"no image")
        assert main([uri]) == 1
        assert message in capsys.readouterr().err

    def test_an_object_that_is_too_large_is_an_error(
        self, memory: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("airflow_provider_modelscope.provenance.__main__.MAX_BYTES", 1024**2)
        memory.pipe_file("bucket/cat.png", bytes(1024**2 + 1))
        assert main(["memory://bucket/cat.png"]) == 1
        assert "is larger than 1 MiB" in capsys.readouterr().err

    def test_a_sidecar_that_may_not_be_read_is_reported(self, register: Register) -> None:
        class WithoutSidecars(Store):
            def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
                if path.endswith(".json"):
                    raise PermissionError("Forbidden")
                return super().open(path, mode, **options)

        file = BytesIO()
        Pillow.new("RGB", (4, 4)).save(file, "PNG")
        register("memory", WithoutSidecars()).pipe_file("bucket/cat.png", file.getvalue())
        found = read_provenance("memory://bucket/cat.png")
        assert found["cat.png.json"] == "cannot be read (Forbidden)"


def test_the_sidecar_is_stored_beside_the_image(tmp_path: Path) -> None:
    destination = Destination.parse(f"file://{tmp_path}/")
    uri = destination.store_sidecar(f"file://{tmp_path}/a.png", b"{}", generation_id="42")
    assert uri == f"file://{tmp_path}/a.png.json"
    assert (tmp_path / "a.png.json").read_bytes() == b"{}"
