"""XMP in image files: properties are added, and nothing else in the file changes."""

from __future__ import annotations

import json
import re
import tracemalloc
import zlib
from collections.abc import Iterator
from io import BytesIO
from itertools import product
from typing import Any
from xml.sax.saxutils import escape

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image as Pillow, ImageSequence

from airflow_provider_modelscope.emulator.drawing import draw
from airflow_provider_modelscope.emulator.parameters import Parameters
from airflow_provider_modelscope.images.parts import MAX_XMP_IN_JPEG, Replacement, spliced
from airflow_provider_modelscope.provenance.xmp import (
    MAX_PACKET,
    CannotEmbedError,
    Property,
    _carrier_of,
    _check,
    packet_of,
    properties_of,
    with_properties,
)

OWN = "https://example.org/ns/own/1.0/"
IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
TC260 = "http://www.tc260.org.cn/ns/AIGC/1.0/"
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
MADE_BY_AI = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
MARKER = Property(namespace=IPTC, prefix="Iptc4xmpExt", name="DigitalSourceType", text=MADE_BY_AI)
MARKER_KEY, PROMPT_KEY, LABEL_KEY = (IPTC, "DigitalSourceType"), (OWN, "prompt"), (TC260, "AIGC")

LABEL = (
    f"<rdf:Description\n rdf:about='uuid:1&amp;2' xmlns:TC260='{TC260}'  ><TC260:AIGC >"
    '{"Label":"1","ContentProducer":"某某公司"}</TC260:AIGC></rdf:Description>'
)
ELSEWHERE = "<rdf:Description xmlns:a='urn:a' a:b='c'/>"

no_deadline = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


def packet(inside: str = LABEL, *, rdf: str = "rdf") -> bytes:
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        f'<{rdf}:RDF xmlns:{rdf}="{RDF}">{inside}</{rdf}:RDF ></x:xmpmeta>\n{" " * 40}\n<?xpacket end="w"?>'
    ).encode()


def prompt(text: str) -> Property:
    return Property(namespace=OWN, prefix="own", name="prompt", text=text)


def embedded(content: bytes, *properties: Property) -> bytes:
    file = BytesIO(content)
    return spliced(
        file, with_properties(file, properties or (MARKER, prompt("A cat")), own_namespace=OWN)
    ).read()


def packet_in(content: bytes) -> str | None:
    return packet_of(BytesIO(content))


def properties_in(content: bytes) -> dict[tuple[str, str], str]:
    return properties_of(packet_in(content) or "")


def painting(mode: str = "RGB", *, turn: int = 0) -> Pillow.Image:
    bands = [Pillow.linear_gradient("L"), Pillow.radial_gradient("L")]
    bands = [band.resize((37, 22)).rotate(90 * turn) for band in bands]
    return Pillow.merge(mode, (bands * 2)[: len(mode)])


def saved(drawing: Pillow.Image, format_: str, **options: Any) -> bytes:
    file = BytesIO()
    drawing.save(file, format_, **options)
    return file.getvalue()


def exif() -> bytes:
    tags = Pillow.Exif()
    tags[0x010E] = "a description"
    return tags.tobytes()


METADATA: dict[str, Any] = {"exif": exif(), "icc_profile": b"a profile"}
OTHERS = [painting(turn=2), painting(turn=1)]

IMAGES = {
    "PNG": saved(painting(), "PNG"),
    "PNG with alpha and metadata": saved(painting("RGBA"), "PNG", **METADATA, dpi=(72, 72)),
    "APNG": saved(painting(), "PNG", save_all=True, append_images=OTHERS),
    "JPEG": saved(painting(), "JPEG", quality=80),
    "JPEG with metadata": saved(painting(), "JPEG", **METADATA, progressive=True, comment=b"a comment"),
    "MPO": saved(painting(), "MPO", save_all=True, append_images=OTHERS),
    "WebP": saved(painting(), "WEBP", quality=80),
    "WebP with alpha": saved(painting("RGBA"), "WEBP", quality=80),
    "WebP with metadata": saved(painting(), "WEBP", **METADATA),
    "lossless WebP": saved(painting(), "WEBP", lossless=True),
    "lossless WebP with alpha": saved(painting("RGBA"), "WEBP", lossless=True),
    "animated WebP": saved(painting(), "WEBP", save_all=True, append_images=OTHERS, duration=40),
}
FORMATS = ["PNG", "JPEG", "WebP"]
each_image = pytest.mark.parametrize("content", IMAGES.values(), ids=IMAGES)
each_format = pytest.mark.parametrize("format_", FORMATS)


def chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data).to_bytes(4)
    return len(data).to_bytes(4) + kind + data + checksum


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + (2 + len(data)).to_bytes(2) + data


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"WEBP" + b"".join(
        kind + len(data).to_bytes(4, "little") + data + b"\0" * (len(data) % 2) for kind, data in chunks
    )
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def itxt(text: bytes, *, flags: bytes = b"\0\0") -> bytes:
    return chunk(b"iTXt", b"XML:com.adobe.xmp\0" + flags + b"\0\0" + text)


def xmp_segment(packet: bytes) -> bytes:
    return segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + packet)


def png(*chunks: bytes) -> bytes:
    """Return a PNG with these chunks before its pixels."""
    before, found, pixels = IMAGES["PNG"].partition(b"\0\0\x00\x0dIHDR")
    head, pixels = found + pixels[:17], pixels[17:]
    return before + head + b"".join(chunks) + pixels


def jpeg(*segments: bytes) -> bytes:
    """Return a JPEG with these segments behind its first, JFIF's."""
    return IMAGES["JPEG"][:20] + b"".join(segments) + IMAGES["JPEG"][20:]


def carrying(format_: str, packet: bytes) -> bytes:
    """Return an image with these bytes as its packet."""
    if format_ == "PNG":
        return png(itxt(packet))
    return jpeg(xmp_segment(packet)) if format_ == "JPEG" else saved(painting(), "WEBP", xmp=packet)


def parts(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield what the file consists of: its kind, and all its bytes."""
    at = 8 if content[:1] == b"\x89" else 12 if content[:1] == b"R" else 2
    yield b"", content[:at]
    while at < len(content):
        start, kind = at, content[at : at + 4]
        if content[:1] == b"\x89":
            kind, at = content[at + 4 : at + 8], at + 12 + int.from_bytes(content[at : at + 4])
        elif content[:1] == b"R":
            size = int.from_bytes(content[at + 4 : at + 8], "little")
            at += 8 + size + size % 2
        else:
            kind = content[at : at + 2]
            at = len(content) if kind == b"\xff\xda" else at + 2 + int.from_bytes(content[at + 2 : at + 4])
        yield kind, content[start:at]


def is_xmp(kind: bytes, part: bytes) -> bool:
    return (
        kind == b"XMP "
        or b"XML:com.adobe.xmp\0" in part[:40]
        or b"http://ns.adobe.com/xap/1.0/\0" in part[:40]
    )


def without_xmp(content: bytes) -> list[bytes]:
    """Return the other parts; of a WebP without the file's header and VP8X, which have to change."""
    kept = [(kind, part) for kind, part in parts(content) if not is_xmp(kind, part)]
    return [part for kind, part in kept if content[:1] != b"R" or kind not in (b"", b"VP8X")]


def frames(content: bytes) -> list[tuple[Any, ...]]:
    with Pillow.open(BytesIO(content)) as drawing:
        return [
            (frame.mode, frame.size, frame.info.get("duration"), frame.tobytes())
            for frame in ImageSequence.Iterator(drawing)
        ]


def raw_xmp(content: bytes) -> bytes:
    """Return the packet as Pillow reads it, after Pillow verified the complete file."""
    with Pillow.open(BytesIO(content)) as drawing:
        drawing.verify()
    with Pillow.open(BytesIO(content)) as drawing:
        drawing.load()
        return bytes(drawing.info["xmp"])


@each_image
class TestEveryImage:
    def test_no_pixel_and_no_other_part_of_the_file_changes(self, content: bytes) -> None:
        result = embedded(content)
        assert frames(result) == frames(content)
        assert without_xmp(result) == without_xmp(content)
        assert len(without_xmp(content)) > 0

    def test_other_programs_find_the_packet(self, content: bytes) -> None:
        result = embedded(content)
        assert packet_in(content) is None
        assert raw_xmp(result).decode() == packet_in(result)
        assert properties_in(result) == {MARKER_KEY: MADE_BY_AI, PROMPT_KEY: "A cat"}

    def test_exif_and_profile_stay(self, content: bytes) -> None:
        with Pillow.open(BytesIO(content)) as before, Pillow.open(BytesIO(embedded(content))) as after:
            assert after.getexif() == before.getexif()
            assert after.info.get("icc_profile") == before.info.get("icc_profile")

    def test_embedding_twice_gives_the_same_bytes(self, content: bytes) -> None:
        assert embedded(embedded(content)) == embedded(content)

    def test_a_new_text_replaces_our_old_one(self, content: bytes) -> None:
        again = embedded(embedded(content), MARKER, prompt("A dog"))
        assert again == embedded(content, MARKER, prompt("A dog"))

    def test_every_truncated_file_is_rejected(self, content: bytes) -> None:
        for complete in (content, embedded(content)):
            if complete.startswith(b"\xff\xd8"):  # pixels are checked when the image is opened, not here
                complete = complete[: complete.index(b"\xff\xda") + 14]
            for length in [*range(200), *range(200, len(complete), 17), len(complete) - 1]:
                with pytest.raises(CannotEmbedError):
                    embedded(complete[:length])
                assert packet_in(complete[:length]) is None


@each_format
class TestTheFinalCheck:
    @pytest.mark.parametrize("existing", [False, True], ids=["new packet", "existing packet"])
    def test_any_other_replacement_is_rejected(self, format_: str, existing: bool) -> None:
        file = BytesIO(carrying(format_, packet()) if existing else IMAGES[format_])
        right = with_properties(file, [MARKER], own_namespace=OWN)
        carrier = _carrier_of(file)
        _check(file, carrier, right)
        *header, (start, end, data) = right
        for wrong in (
            Replacement(start, end, data[:-2]),
            Replacement(start, end, data + b"\0\0"),
            Replacement(start, end, data + data),
            Replacement(start, end, b""),
            Replacement(start - 1, end, data),
            Replacement(start + 1, max(start + 1, end), data),
            Replacement(start - 20, end, data),
        ):
            with pytest.raises((CannotEmbedError, ValueError)):
                _check(file, carrier, [*header, wrong])


@each_format
class TestExistingPackets:
    @pytest.mark.parametrize("rdf", ["rdf", "r"])
    def test_the_label_and_all_around_it_stay_byte_for_byte(self, format_: str, rdf: str) -> None:
        existing = packet(LABEL.replace("rdf:", f"{rdf}:"), rdf=rdf)
        result = embedded(carrying(format_, existing))
        before, end, after = existing.partition(f"</{rdf}:RDF ".encode())
        assert raw_xmp(result).startswith(before)
        assert raw_xmp(result).endswith(end + after)
        assert properties_in(result) == {
            **properties_of(existing.decode()),
            **properties_in(embedded(IMAGES["PNG"])),
        }
        assert without_xmp(result) == without_xmp(carrying(format_, existing))
        assert frames(result) == frames(carrying(format_, existing))

    @pytest.mark.parametrize(
        "existing",
        [
            "><i:DigitalSourceType>other</i:DigitalSourceType></rdf:Description>",
            " i:DigitalSourceType='other'/>",
            "><i:DigitalSourceType rdf:resource='other'/></rdf:Description>",
        ],
        ids=["element", "attribute", "resource"],
    )
    def test_an_existing_property_is_not_added_again(self, format_: str, existing: str) -> None:
        content = carrying(format_, packet(f"<rdf:Description xmlns:i='{IPTC}'{existing}"))
        assert embedded(content, MARKER) == content
        assert properties_in(embedded(content)) == {MARKER_KEY: "other", PROMPT_KEY: "A cat"}

    def test_our_own_block_is_replaced_and_the_rest_stays(self, format_: str) -> None:
        first = embedded(carrying(format_, packet()), MARKER, prompt("x > y & <z>"))
        inside = raw_xmp(first).decode()
        (ours,) = re.findall(
            r"<rdf:Description rdf:about=.{1,99} xmlns:rdf=.*?</rdf:Description>", inside, re.S
        )
        both = carrying(format_, inside.replace(LABEL, f"{ours} {LABEL} {ours}\n{ELSEWHERE}").encode())
        result = raw_xmp(embedded(both, prompt("y"))).decode()
        assert result.count("rdf:about=") == 2
        assert f" {LABEL} \n{ELSEWHERE}<rdf:Description" in result
        assert embedded(embedded(both, prompt("y")), prompt("y")) == embedded(both, prompt("y"))

    def test_a_description_merged_by_another_program_stays(self, format_: str) -> None:
        gathered = LABEL.replace(" xmlns", f" xmlns:own='{OWN}' own:prompt='A cat' xmlns", 1)
        result = embedded(carrying(format_, packet(gathered)), MARKER, prompt("A dog"))
        assert gathered.encode() in raw_xmp(result)
        assert properties_in(result)[PROMPT_KEY] == "A cat"

    @pytest.mark.parametrize("around", ["{}", "<a>{}</a>", "<rdf:Description><a>{}</a></rdf:Description>"])
    def test_a_block_that_only_resembles_ours_stays(self, format_: str, around: str) -> None:
        content = f" own:prompt='A cat' {'/>' if around == '{}' else '></rdf:Description>'}"
        alike = around.format(f"<rdf:Description xmlns:rdf='{RDF}' xmlns:own='{OWN}'{content}")
        result = raw_xmp(embedded(carrying(format_, packet(alike)), MARKER, prompt("A dog")))
        assert alike.encode() in result
        assert b"A dog" not in result

    def test_a_block_of_ours_that_contains_another_is_replaced(self, format_: str) -> None:
        start, end = f"<rdf:Description xmlns:rdf='{RDF}' xmlns:own='{OWN}'>", "</rdf:Description>"
        nested = f"{start}<own:a><rdf:RDF>{start}{end}</rdf:RDF></own:a>{end}"
        result = embedded(carrying(format_, packet(nested)))
        assert packet_in(result) == packet_in(embedded(carrying(format_, packet(""))))

    @pytest.mark.parametrize(
        ("description", "about"),
        [
            ("<rdf:Description rdf:about='uuid:1&amp;&quot;2' />", 'uuid:1&"2'),
            ("<rdf:Description about='an old writer'/>", "an old writer"),
            ("<rdf:Description/>", ""),
            ("", ""),
            ("<rdf:Description rdf:about='1'/><rdf:Description rdf:about='2'/>", "1"),
        ],
    )
    def test_our_block_has_the_about_of_the_first_description(
        self, format_: str, description: str, about: str
    ) -> None:
        result = raw_xmp(embedded(carrying(format_, packet(description)))).decode()
        (quoted,) = re.findall(r"rdf:about=(\"[^\"]*\"|'[^']*') xmlns:rdf", result)
        assert quoted[1:-1] == escape(about)

    @pytest.mark.parametrize(
        "existing",
        [
            f"{LABEL}<!-- </rdf:RDF> -->",
            f"{LABEL}<rdf:Description xmlns:a='urn:a'><a:b><![CDATA[</rdf:RDF>]]></a:b></rdf:Description>",
            f"{LABEL}<rdf:Description xmlns:a='urn:a'><a:b><rdf:RDF/></a:b></rdf:Description>",
            f"{LABEL}<rdf:Description xmlns:a='urn:a' a:b='/>'></rdf:Description>",
            f'{LABEL}</rdf:RDF><rdf:RDF xmlns:rdf="{RDF}">',
            f'{LABEL}</rdf:RDF><rdf:RDF xmlns:rdf="{RDF}"/><rdf:RDF xmlns:rdf="{RDF}">/>',
        ],
    )
    def test_the_last_closing_tag_is_found_among_lookalikes(self, format_: str, existing: str) -> None:
        result = embedded(carrying(format_, packet(existing)))
        before, end, after = packet(existing).rpartition(b"</rdf:RDF ")
        assert raw_xmp(result).startswith(before)
        assert raw_xmp(result).endswith(end + after)
        assert properties_in(result)[PROMPT_KEY] == "A cat"
        assert embedded(result) == result

    @pytest.mark.parametrize(
        "existing",
        [
            b" ",
            b"no XML",
            packet()[:-80],
            packet() + b"\0",
            packet().replace(b"</rdf:RDF", b"</rdf:Bag"),
            packet().replace("某".encode(), "某公".encode("gbk")),
            packet().replace(b"uuid", b"\xed\xa0\x80"),
            packet().decode().encode("utf-16"),
            packet(ELSEWHERE).decode().replace("\ufeff", "").encode("utf-16-le"),
            packet(ELSEWHERE).decode().replace("\ufeff", "").encode("utf-16-be"),
            packet().replace(b"<x:x", b"<!DOCTYPE x><x:x"),
            packet('<a>&b;</a>').replace(b"<x:x", b'<!DOCTYPE x [<!ENTITY b "c">]><x:x'),
            packet("<a>&b;</a>"),
            packet("<a:b/>"),
            packet(f"<a xmlns='{'u' * 300}'/>"),
            packet().replace(RDF.encode(), b"urn:another"),
            f'<rdf:RDF xmlns:rdf="{RDF}"/>'.encode(),
            f'<a><rdf:RDF xmlns:rdf="{RDF}"/></a>'.encode(),
            b'<x:xmpmeta xmlns:x="adobe:ns:meta/"></x:xmpmeta>',
            b"<a>" * 20_000,
        ],
    )  # fmt: skip
    def test_a_packet_that_cannot_be_added_to_is_an_error(self, format_: str, existing: bytes) -> None:
        with pytest.raises(CannotEmbedError, match="The XMP packet in the file cannot be added to: "):
            embedded(carrying(format_, existing))
        assert properties_in(carrying(format_, existing)) == {}

    def test_many_blocks_take_linear_time(self, format_: str) -> None:
        ours = f'<rdf:Description xmlns:rdf="{RDF}" xmlns:own="{OWN}"></rdf:Description><a/>'
        most = 60_000 if format_ == "JPEG" else 900_000
        many = packet(ours * (most // len(ours)))
        assert properties_in(embedded(carrying(format_, many))) == properties_in(embedded(IMAGES["PNG"]))


@each_image
@pytest.mark.parametrize(
    "text",
    [
        "",
        "<script>alert('1' && \"2\")</script>",
        "<![CDATA[ ]]> &amp; &#65; <!-- -->",
        "某某公司 a golden cat 🐈\u200d⬛ \u202e",
        " two\nlines\r\nand\rmore\t ",
    ],
)
def test_odd_texts_are_read_back_unchanged(content: bytes, text: str) -> None:
    assert properties_in(embedded(content, prompt(text))) == {PROMPT_KEY: text}


def test_text_that_xml_cannot_hold_is_replaced() -> None:
    odd = "\0 \x01 \x0b \x1f \ud83d \udc08\ud83d \ufffe \uffff"
    result = embedded(IMAGES["PNG"], prompt(odd))
    assert properties_in(result) == {PROMPT_KEY: re.sub(r"[^ ]", "\ufffd", odd)}
    assert embedded(result, prompt(odd)) == result


def test_any_text_is_read_back() -> None:
    @settings(no_deadline, max_examples=300)
    @given(st.text(st.characters(exclude_categories=())))
    def try_one(text: str) -> None:
        unfit = {*map(chr, range(32)), *map(chr, range(0xD800, 0xE000)), "\ufffe", "\uffff"} - set("\t\n\r")
        readable = "".join("\ufffd" if letter in unfit else letter for letter in text)
        assert properties_in(embedded(IMAGES["WebP"], prompt(text))) == {PROMPT_KEY: readable}

    try_one()


@pytest.mark.parametrize("name", ["", "a b", "1", "a/", "a><b", 'a b="c"', "x:y", "a\n", "名"])
def test_a_name_that_would_break_the_packet_is_rejected(name: str) -> None:
    with pytest.raises(CannotEmbedError, match="is not valid in XMP"):
        embedded(IMAGES["PNG"], Property(namespace=OWN, prefix="own", name=name, text=""))


def test_nothing_to_add_changes_nothing() -> None:
    for content, existing in product(IMAGES.values(), [b"", packet()]):
        image = carrying("PNG", existing) if existing else content
        assert with_properties(BytesIO(image), [], own_namespace=OWN) == []


@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
def test_images_of_the_emulator_keep_their_label(image_format: str) -> None:
    asked = {"model": "black-forest-labs/FLUX.1-Krea-dev", "prompt": "A <golden> cat", "size": "64x64"}
    content = draw(Parameters.from_body(json.dumps(asked).encode()), image_format)
    result = embedded(content)
    assert frames(result) == frames(content)
    assert without_xmp(result) == without_xmp(content)
    assert raw_xmp(result).startswith(raw_xmp(content).partition(b"</rdf:RDF>")[0])
    assert properties_in(result) == {**properties_in(content), MARKER_KEY: MADE_BY_AI, PROMPT_KEY: "A cat"}
    assert json.loads(properties_in(result)[LABEL_KEY])["ContentProducer"] == "ModelScope emulator"


def test_properties_are_read_in_every_notation() -> None:
    read = properties_of(
        packet(
            "<rdf:Description rdf:about='' xml:lang='x' xmlns:a='urn:a' a:attribute='1' plain='2'>"
            "<a:element xml:lang='en'>3<!-- no --> 4</a:element><a:empty/><a:uri rdf:resource='urn:5'/>"
            "<a:list> <rdf:Seq> <rdf:li>6</rdf:li> <rdf:li/> <rdf:li>7</rdf:li></rdf:Seq></a:list>"
            "<a:element>again</a:element><a:parts><rdf:Description a:part='8'/></a:parts><a:short a:part=''/>"
            "<a:parts><rdf:Bag><rdf:li><a:part>8</a:part></rdf:li></rdf:Bag></a:parts>"
            "<a:parts><rdf:Bag><rdf:li>8</rdf:li></rdf:Bag><a:part/></a:parts>"
            "<a:parts rdf:parseType='Resource'><a:part>9</a:part></a:parts></rdf:Description>"
        ).decode()
    )
    assert {name: text for (_, name), text in read.items()} == {
        "attribute": "1", "element": "3 4", "empty": "", "uri": "urn:5", "list": "6, , 7",
    }  # fmt: skip
    assert {namespace for namespace, _ in read} == {"urn:a"}
    assert properties_of("\ud800") == properties_of("") == {}


class TestPNG:
    def test_a_new_chunk_is_placed_before_the_pixels(self) -> None:
        kinds = [kind for kind, _ in parts(embedded(IMAGES["PNG with alpha and metadata"]))]
        assert kinds.index(b"iTXt") == kinds.index(b"IDAT") - 1
        assert kinds.index(b"iCCP") < kinds.index(b"iTXt")

    def test_a_compressed_packet_is_replaced_in_its_place(self) -> None:
        content = png(
            chunk(b"tEXt", b"a\0b"), itxt(zlib.compress(packet()), flags=b"\1\0"), chunk(b"tEXt", b"c\0d")
        )
        result = embedded(content)
        assert packet_in(content) == packet().decode()
        assert LABEL.encode() in raw_xmp(result)
        assert [kind for kind, _ in parts(result)] == [kind for kind, _ in parts(content)]
        assert without_xmp(result) == without_xmp(content)

    def test_only_the_first_of_two_packets_is_added_to(self) -> None:
        result = embedded(png(itxt(packet()), itxt(b"another")))
        assert itxt(b"another") in result
        assert properties_in(result)[PROMPT_KEY] == "A cat"

    @pytest.mark.parametrize(
        "packet_chunk",
        [
            itxt(zlib.compress(b" " * 100_000_000), flags=b"\1\0"),
            itxt(zlib.compress(packet())[:-9], flags=b"\1\0"),
            itxt(packet(), flags=b"\1\0"),
            itxt(zlib.compress(packet()), flags=b"\1\1"),
            itxt(packet(), flags=b"\7\0"),
            chunk(b"iTXt", b"XML:com.adobe.xmp\0"),
            chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0"),
            itxt(b" " * MAX_PACKET + packet()),
        ],
        ids=["bomb", "cut off", "not compressed", "unknown", "odd flag", "empty", "no text", "huge"],
    )
    def test_a_packet_that_cannot_be_decompressed_is_rejected(self, packet_chunk: bytes) -> None:
        with pytest.raises(CannotEmbedError):
            embedded(png(packet_chunk))
        assert packet_in(png(packet_chunk)) is None

    def test_a_decompression_bomb_takes_no_memory(self) -> None:
        content = png(itxt(zlib.compress(b" " * 100_000_000), flags=b"\1\0"))
        tracemalloc.start()
        try:
            packet_in(content)
            assert tracemalloc.get_traced_memory()[1] < 3 * MAX_PACKET
        finally:
            tracemalloc.stop()

    def test_pixels_in_several_chunks_stay_together(self) -> None:
        kinds = [kind for kind, _ in parts(embedded(png(chunk(b"IDAT", b""))))]
        assert kinds[2:5] == [b"iTXt", b"IDAT", b"IDAT"]

    def test_a_keyword_ends_with_its_chunk(self) -> None:
        content = png(
            chunk(b"iTXt", b"XML:com.adobe")[:-4] + b".xmp"
        )  # which is no checksum, but looks right
        assert embedded(content).replace(itxt((packet_in(embedded(content)) or "").encode()), b"") == content

    @pytest.mark.parametrize(
        "content",
        [
            IMAGES["PNG"].replace(b"IHDR", b"IHDr"),
            IMAGES["PNG"].replace(b"IDAT", b"IDAt"),
            png(chunk(b"IHDR", b"\0" * 13)),
            png(chunk(b"IEND", b"")),
            png(b"\xff\xff\xff\xffabcd"),
        ],
    )
    def test_chunks_out_of_order_are_rejected(self, content: bytes) -> None:
        with pytest.raises(CannotEmbedError, match="PNG is cut off or malformed"):
            embedded(content)


class TestJPEG:
    def test_a_new_segment_is_placed_between_exif_and_profile(self) -> None:
        kinds = [part[:10] for _, part in parts(embedded(IMAGES["JPEG with metadata"]))]
        begins = [kind[4:8] for kind in kinds]
        assert begins[1:5] == [b"JFIF", b"Exif", b"http", b"ICC_"] or begins[1:4] == [
            b"Exif",
            b"http",
            b"ICC_",
        ]

    def test_a_new_segment_follows_only_leading_segments(self) -> None:
        content = jpeg(segment(0xE2, b"a"), segment(0xE0, b"JFXX\0"), segment(0xE1, b"Exif\0\0"))
        assert [part[4:8] for _, part in parts(embedded(content))][1:4] == [b"JFIF", b"http", b"a"]

    def test_the_further_images_of_an_mpo_still_open(self) -> None:
        result = embedded(IMAGES["MPO"])
        kinds = [part[4:8] for _, part in parts(result)]
        assert kinds.index(b"http") < kinds.index(b"MPF\0")
        assert frames(result) == frames(IMAGES["MPO"])
        assert len(frames(result)) == 3

    def test_a_packet_after_the_offsets_of_an_mpo_cannot_grow(self) -> None:
        content = jpeg(segment(0xE2, b"MPF\0"), xmp_segment(packet()))
        assert packet_in(content) == packet().decode()
        with pytest.raises(CannotEmbedError, match="further images"):
            embedded(content)

    def test_a_packet_too_long_for_a_segment_is_rejected(self) -> None:
        room = MAX_XMP_IN_JPEG - len(packet_in(embedded(IMAGES["JPEG"], prompt(""))) or "") - 2
        assert len(raw_xmp(embedded(IMAGES["JPEG"], prompt("x" * room)))) == MAX_XMP_IN_JPEG
        with pytest.raises(CannotEmbedError, match="65503 bytes, more than the limit of 65502"):
            embedded(IMAGES["JPEG"], prompt("x" * (room + 1)))

    def test_extended_xmp_and_a_second_packet_stay(self) -> None:
        others = segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + b"x" * 99), xmp_segment(b"another")
        result = embedded(jpeg(others[0], xmp_segment(packet()), others[1]))
        assert all(other in result for other in others)
        assert properties_in(result)[PROMPT_KEY] == "A cat"

    def test_padding_and_markers_without_data_are_skipped(self) -> None:
        for fill in (b"\xff" * 1000 + b"\x01\xff\xd3\xff\xff", *(b"\xff" * n for n in (2048, 4094, 99_999))):
            self.check_padding(fill)

    def check_padding(self, fill: bytes) -> None:
        for content in (
            jpeg(fill + segment(0xFE, b"a")),
            jpeg(fill + xmp_segment(packet()), fill + segment(0xFE, b"a")),
        ):
            result = embedded(content)
            assert properties_in(result)[PROMPT_KEY] == "A cat"
            assert result.count(fill) == content.count(fill)
            assert embedded(result) == result

    @pytest.mark.parametrize(
        "between",
        [
            b"\xff\xd8",
            b"\xff\xd9",
            b"\xff\x00",
            b"\xff\x02",
            b"a",
            b"\xff\xe5\0\1",
            b"\xff\xda\0\1",
            b"\xff\xe5\xff\xff",
        ],
    )
    def test_bytes_that_are_no_segment_are_rejected(self, between: bytes) -> None:
        with pytest.raises(CannotEmbedError, match="JPEG is cut off or malformed"):
            embedded(jpeg(between))


class TestWebP:
    @pytest.mark.parametrize("size", [(1, 1), (1, 300), (16383, 1), (37, 5)])
    @pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 50}], ids=str)
    @pytest.mark.parametrize("mode", ["RGB", "RGBA"])
    def test_the_canvas_has_the_size_of_the_image(
        self, size: tuple[int, int], options: dict[str, Any], mode: str
    ) -> None:
        content = saved(painting(mode).resize(size), "WEBP", **options)
        result = embedded(content)
        assert frames(result) == frames(content)
        header = dict(parts(result))[b"VP8X"]
        assert bool(header[8] & 0x10) == (mode == "RGBA")
        assert header[8] & 0x04
        assert (
            1 + int.from_bytes(header[12:15], "little"),
            1 + int.from_bytes(header[15:], "little"),
        ) == size

    def test_other_flags_stay(self) -> None:
        for name in ("WebP with metadata", "animated WebP", "WebP with alpha"):
            before, after = (
                dict(parts(IMAGES[name]))[b"VP8X"],
                dict(parts(embedded(IMAGES[name])))[b"VP8X"],
            )
            assert after == before[:8] + bytes([before[8] | 0x04]) + before[9:]

    @pytest.mark.parametrize("text", ["a", "ab"])
    def test_an_odd_length_is_padded(self, text: str) -> None:
        result = embedded(IMAGES["WebP with metadata"], prompt(text))
        assert len(result) % 2 == 0
        assert int.from_bytes(result[4:8], "little") == len(result) - 8
        assert properties_in(embedded(result, prompt("other"))) == {PROMPT_KEY: "other"}

    def test_trailing_bytes_stay(self) -> None:
        assert embedded(IMAGES["WebP"] + b"trailing") == embedded(IMAGES["WebP"]) + b"trailing"

    def test_only_the_first_packet_is_used_even_if_unannounced(self) -> None:
        lossy = IMAGES["WebP"][20:]
        result = embedded(riff((b"VP8 ", lossy), (b"XMP ", packet()), (b"XMP ", b"x"), (b"ABCD", b"x")))
        assert properties_in(result)[PROMPT_KEY] == "A cat"
        assert [kind for kind, _ in parts(result)] == [b"", b"VP8X", b"VP8 ", b"XMP ", b"XMP ", b"ABCD"]

    def test_the_upscaling_bits_are_not_part_of_the_size(self) -> None:
        lossy = IMAGES["WebP"][20:]
        larger = lossy[:7] + bytes([lossy[7] | 0x40]) + lossy[8:]
        assert dict(parts(embedded(riff((b"VP8 ", larger)))))[b"VP8X"][12:] == b"\x24\0\0\x15\0\0"

    @pytest.mark.parametrize(
        "content",
        [
            riff(),
            riff((b"VP8 ", b"")),
            riff((b"VP8 ", b"\0\0\0\x9d\x01\x2a\0\0\1\0")),
            riff((b"VP8 ", b"\0\0\0\x9d\x01\x2b\1\0\1\0")),
            riff((b"VP8 ", b"\0\0\0\x9d"), (b"\x01\x2a\1\0", b"x")),
            riff((b"VP8L", b"\x2f\0\0\0")),
            riff((b"VP8L", b"\x2e\0\0\0\0")),
            riff((b"VP8X", b"\0" * 9)),
            riff((b"XMP ", packet())),
            riff((b"ABCD", b"x" * 20)),
            b"RIFF\xf6\xff\xff\xffWEBP",
            b"RIFF\0\0\0\0WEBP",
            b"RIFF\x0c\0\0\0WEBPVP8L\xff\xff\xff\xff",
        ],
    )
    def test_a_file_that_does_not_start_with_an_image_is_rejected(self, content: bytes) -> None:
        with pytest.raises(CannotEmbedError, match="WebP is cut off or malformed"):
            embedded(content)
        assert packet_in(content) is None


@pytest.mark.parametrize("format_", ["GIF", "BMP", "TIFF"])
def test_other_formats_are_rejected(format_: str) -> None:
    content = saved(painting(), format_)
    with pytest.raises(CannotEmbedError, match="Only PNG, JPEG and WebP"):
        embedded(content)
    assert packet_in(content) is None


PIECES = [b"</rdf:RDF>", b"<rdf:RDF/>", b"/>", b"<!--", b"\xff\xd8", b"\xff" * 4, LABEL.encode()]
SEEDS = [*IMAGES.values(), *(carrying(format_, packet()) for format_ in FORMATS)]
SEEDS += [embedded(content) for content in SEEDS]


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Change a few bytes, near the start or in the packet, mostly without moving the rest."""
    near = max(content.find(b"<rdf:RDF"), 0)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, 80) | st.integers(near, near + 700) | st.integers(0, len(content)))
        new = draw(
            st.sampled_from(PIECES) | st.binary(max_size=6) | st.sampled_from([b" ", b"a", b"1", b"."])
        )
        content = content[:at] + new + content[at + draw(st.sampled_from([len(new), len(new), 0, 9])) :]
    return content


def accepted(content: bytes) -> bool:
    packet_in(content)
    try:
        result = embedded(content)
    except CannotEmbedError:
        return False
    assert embedded(result) == result
    assert {MARKER_KEY, PROMPT_KEY} & properties_in(result).keys() or "own" in str(packet_in(result))
    return True


def test_any_bytes_are_accepted_or_rejected() -> None:
    counts = [0, 0]

    @settings(no_deadline, max_examples=1500)
    @given(st.sampled_from(SEEDS).flatmap(damaged))
    def try_one(content: bytes) -> None:
        counts[accepted(content)] += 1

    try_one()
    print(counts)
    assert min(counts) > 30


def test_any_packet_is_added_to_or_rejected() -> None:
    counts = [0, 0]

    @settings(no_deadline, max_examples=1500)
    @given(st.sampled_from([packet(), packet(LABEL + ELSEWHERE), raw_xmp(SEEDS[-1])]).flatmap(damaged))
    def try_one(existing: bytes) -> None:
        counts[accepted(riff((b"VP8L", b"\x2f\0\0\0\0"), (b"XMP ", existing)))] += 1

    try_one()
    print(counts)
    assert min(counts) > 30
