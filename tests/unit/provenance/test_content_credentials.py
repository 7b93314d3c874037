"""Content Credentials: a signed image stays valid when it is stored, and its manifest is reported.

The images are signed and verified with c2pa-python, by a certificate that is made here. No network is used.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image as Pillow

from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.images.formats import CONVERTIBLE
from airflow_provider_modelscope.images.image import Image
from airflow_provider_modelscope.images.object_storage import Destination
from airflow_provider_modelscope.images.parts import has_content_credentials
from airflow_provider_modelscope.operators.image_generation import ModelScopeImageGenerationOperator
from airflow_provider_modelscope.protocol.request import GenerationRequest
from airflow_provider_modelscope.provenance.__main__ import read_provenance
from airflow_provider_modelscope.provenance.record import Provenance
from airflow_provider_modelscope.tasks.storing import fetch_finished_generation

if TYPE_CHECKING:
    from airflow_provider_modelscope.emulator import Emulator

MIME = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
REQUEST: dict[str, Any] = {"model": "Qwen/Qwen-Image", "prompt": "A cat", "size": "96x64"}

pytestmark = pytest.mark.usefixtures("no_pauses")


def certificates() -> tuple[bytes, bytes]:
    """Return the chain of a certificate that may sign manifests, and its private key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    now, chain = datetime.now(UTC), b""
    for name, public_key, is_root in (
        ("Signer", key.public_key(), False),
        ("Root", root_key.public_key(), True),
    ):
        names = [
            x509.Name(
                [
                    x509.NameAttribute(NameOID.COMMON_NAME, each),
                    x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tests"),
                ]
            )
            for each in (name, "Root")
        ]
        usage = dict.fromkeys(
            (
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(names[0])
            .issuer_name(names[1])
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(is_root, None), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=not is_root, key_cert_sign=is_root, crl_sign=is_root, **usage
                ),
                critical=True,
            )
        )
        if not is_root:
            builder = builder.add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=True
            )
        chain += builder.sign(root_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    return chain, key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.fixture(scope="module")
def signed() -> dict[str, bytes]:
    """A signed image in each format that can hold a manifest."""
    c2pa = pytest.importorskip("c2pa", reason="c2pa-python has no wheel for this platform")
    chain, key = certificates()
    created = {
        "action": "c2pa.created",
        "digitalSourceType": "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
    }
    images = {}
    for format_, mime in MIME.items():
        plain, result = BytesIO(), BytesIO()
        Pillow.radial_gradient("L").convert("RGB").save(plain, format_)
        plain.seek(0)
        manifest = {
            "claim_generator_info": [{"name": "tests", "version": "1"}],
            "title": "A cat",
            "format": mime,
            "assertions": [{"label": "c2pa.actions", "data": {"actions": [created]}}],
        }
        signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(b"es256", chain, key, None))
        with c2pa.Builder(manifest) as builder, signer:
            builder.sign(signer, mime, plain, result)
        images[format_] = result.getvalue()
    return images


def state_of(content: bytes, format_: str) -> str:
    """Return what the reader says of an image's manifest."""
    import c2pa

    with c2pa.Reader(MIME[format_], BytesIO(content)) as reader:
        return str(json.loads(reader.json())["validation_state"])


def provenance() -> Provenance:
    generation_id = ModelScopeHook().submit_generation(GenerationRequest(**REQUEST))
    generation = fetch_finished_generation(ModelScopeHook(), generation_id)
    return Provenance(generation=generation, submission=None)


@pytest.mark.parametrize("format_", CONVERTIBLE)
class TestSigned:
    def test_it_stays_valid_when_metadata_should_be_embedded(
        self,
        signed: dict[str, bytes],
        format_: str,
        emulator: Emulator,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        assert state_of(signed[format_], format_) == "Valid"
        destination = Destination.parse(f"file://{tmp_path}/")
        with Image.from_bytes(signed[format_]) as image:
            uri = destination.store(provenance().embedded_in(image), generation_id="42", number=1)
        assert state_of(Path(uri.removeprefix("file://")).read_bytes(), format_) == "Valid"
        assert "without embedded metadata: The file contains Content Credentials (C2PA)" in caplog.text

    def test_its_manifest_is_found_only_where_it_is(self, signed: dict[str, bytes], format_: str) -> None:
        assert has_content_credentials(BytesIO(signed[format_]))
        for other in CONVERTIBLE:
            with Image.from_bytes(signed[format_]).converted(other) as image:
                assert has_content_credentials(image.file) is (other == format_)


def drawn(folder: Path, context: Any, name: str = "cat.png", **options: Any) -> Path:
    """Make an image with the one-step operator, and return its file."""
    parameters = {**REQUEST, "destination": f"file://{folder}/{name}", "sidecar": True, **options}
    [uri] = ModelScopeImageGenerationOperator(task_id="draw", **parameters).execute(context)
    return Path(uri.removeprefix("file://"))


def test_a_generated_image_with_a_manifest_is_stored_as_it_came(
    emulator: Emulator, context: Any, tmp_path: Path
) -> None:
    emulator.fail("image:signed")
    file = drawn(tmp_path, context, embed_metadata=True)
    [served] = emulator.served.values()
    assert file.read_bytes() == served
    assert json.loads(file.with_name("cat.png.json").read_text())["content_credentials"] is True
    assert "C2PA" in read_provenance(str(file))["content_credentials"]


def test_the_sidecar_describes_the_stored_file_not_the_one_that_came(
    emulator: Emulator, context: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    emulator.fail("image:signed")
    file = drawn(tmp_path, context, "cat.jpg", embed_metadata=True)
    assert json.loads(file.with_name("cat.jpg.json").read_text())["content_credentials"] is False
    assert "content_credentials" not in read_provenance(str(file))
    assert "Content Credentials (C2PA) get lost in the conversion to JPEG" in caplog.text
