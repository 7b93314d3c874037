"""Draws the image of a generation: a landscape in colours of its own, with the request written on it."""

from __future__ import annotations

import json
import math
from colorsys import hls_to_rgb
from functools import lru_cache
from io import BytesIO
from random import Random
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from airflow_provider_modelscope.emulator.lettering import MISSING, Lettering

if TYPE_CHECKING:
    from PIL import Image

    from airflow_provider_modelscope.emulator.parameters import Parameters

    Colour = tuple[int, int, int, int]
    Line = tuple[str, int, Colour]

TEXT = (255, 255, 255, 255)
DIMMED = (255, 255, 255, 200)
LINE_HEIGHT = 1.4  # of the font size of the prompt


@lru_cache(maxsize=8)
def draw(parameters: Parameters, image_format: str = "PNG") -> bytes:
    """Draw the image and label it as made by AI, as ModelScope does.

    The same parameters give the same bytes, given the same version of Pillow and the same fonts.

    :param image_format: ``PNG``, ``JPEG``, or ``signed PNG``: with Content Credentials, which are not valid.
        Only a PNG also contains the parameters as text. ``PNG without label`` contains no metadata.
    """
    from PIL.PngImagePlugin import PngInfo

    image = _landscape(parameters)
    _write(image, parameters)
    label = _ai_label(parameters)
    file = BytesIO()
    if image_format == "JPEG":
        image.save(file, "JPEG", quality=90, xmp=label.encode())
    elif image_format == "PNG without label":
        image.save(file, "PNG", compress_level=4)
    else:
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", label)
        info.add_text("parameters", _parameters_text(parameters))
        if image_format == "signed PNG":
            info.add(b"caBX", b"\0\0\0\x16jumb\0\0\0\x0ejumdc2pa\0\0")
        image.save(file, "PNG", pnginfo=info, compress_level=4)
    return file.getvalue()


def _landscape(parameters: Parameters) -> Image.Image:
    from PIL import Image, ImageChops, ImageDraw

    rng = Random(parameters.digest)  # noqa: S311 - not for security
    # Drawing at one scale and resizing is fast and gives smooth edges.
    scale = 1536 / max(parameters.width, parameters.height)
    width, height = round(parameters.width * scale), round(parameters.height * scale)
    hue, hue_shift = rng.uniform(0.5, 1.12), rng.choice((-1, 1)) * rng.uniform(0.08, 0.2)

    sky = Image.new("RGB", (1, 4))
    for row in range(4):
        sky.putpixel((0, row), _colour(hue + hue_shift * row / 3, 0.4 + 0.13 * row, 0.6))
    image = sky.resize((width, height), Image.Resampling.BICUBIC)

    x, y = round(width * rng.uniform(0.2, 0.8)), round(height * rng.uniform(0.15, 0.35))
    radius = round(min(width, height) * rng.uniform(0.07, 0.12))
    glow = ImageChops.invert(Image.radial_gradient("L")).point([max(0, tone - 80) for tone in range(256)])
    light = _colour(hue + hue_shift, 0.93, 0.9)
    image.paste(light, (x - 6 * radius, y - 6 * radius), glow.resize((12 * radius, 12 * radius)))
    pen = ImageDraw.Draw(image)
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), light)

    for ridge in range(5):
        skyline = [
            (width * step / 96, height * (0.42 + 0.12 * ridge + rise))
            for step, rise in enumerate(_skyline(rng, 1.3**ridge))
        ]
        colour = _colour(hue + hue_shift * (1 - ridge / 3), 0.58 - 0.1 * ridge, 0.42)
        pen.polygon([*skyline, (width, height), (0, height)], colour)
    return image.resize((parameters.width, parameters.height), Image.Resampling.BICUBIC)


def _skyline(rng: Random, nearness: float) -> list[float]:
    waves = [(octave, rng.uniform(1, 2.2) * nearness**0.7, rng.uniform(0, 7)) for octave in (1, 2, 3)]
    return [
        0.05 * sum(math.sin(step / 16 * pace * octave + phase) / octave for octave, pace, phase in waves)
        for step in range(97)
    ]


def _colour(hue: float, lightness: float, saturation: float) -> tuple[int, int, int]:
    red, green, blue = hls_to_rgb(hue % 1, lightness, saturation)
    return round(255 * red), round(255 * green), round(255 * blue)


def _write(image: Image.Image, parameters: Parameters) -> None:
    from PIL import ImageDraw

    lettering = _lettering()
    lines = caption(parameters, lettering)
    unit = _unit(parameters)
    margin = pad = unit // 2
    line_height = unit * LINE_HEIGHT
    top = image.height - margin - 2 * pad - line_height * len(lines)
    pen = ImageDraw.Draw(image, "RGBA")
    pen.rounded_rectangle((margin, top, image.width - margin, image.height - margin), pad, (12, 14, 24, 150))
    for number, (line, size, fill) in enumerate(lines):
        middle = top + pad + line_height * (number + 0.5)
        lettering.write(pen, (margin + pad, middle + 0.36 * size), line, size, fill)


def caption(parameters: Parameters, lettering: Lettering) -> list[Line]:
    """Return the lines that are written on the image, each with its font size and its colour."""
    unit = _unit(parameters)
    small = max(9, unit * 3 // 4)
    pad = unit // 2
    text_width = parameters.width - 4 * pad
    max_lines = int((parameters.height * 0.6 - 2 * pad) // (unit * LINE_HEIGHT))
    details = [parameters.model, f"seed {parameters.seed}, {parameters.width}x{parameters.height}"]
    if parameters.edited_from:
        details.append(f"edited from {parameters.edited_from}")
    prompt = lettering.wrap(
        parameters.prompt, unit, text_width, max(min(2, max_lines), min(4, max_lines - len(details)))
    )
    if any(MISSING in line for line in prompt):
        details.append(f"{MISSING} no font for these characters")
    lines = [(line, unit, TEXT) for line in prompt]
    for detail in details[: max(0, max_lines - len(prompt))]:
        lines += [(line, small, DIMMED) for line in lettering.wrap(detail, small, text_width, 1)]
    return lines


def _unit(parameters: Parameters) -> int:
    return max(10, min(parameters.width, parameters.height) // 24)


@lru_cache(maxsize=1)
def _lettering() -> Lettering:
    return Lettering()  # searches the machine for fonts


def _ai_label(parameters: Parameters) -> str:
    # GB 45438-2025: the label is JSON in the XMP property AIGC of the TC260 namespace.
    label = {"Label": "1", "ContentProducer": "ModelScope emulator", "ProduceID": parameters.digest[:32]}
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:TC260="http://www.tc260.org.cn/ns/AIGC/1.0/">'
        f"<TC260:AIGC>{escape(json.dumps(label))}</TC260:AIGC>"
        '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )


def _parameters_text(parameters: Parameters) -> str:
    # The format of Stable Diffusion tools.
    used = {
        "Steps": parameters.steps,
        "Sampler": "Euler a",
        "CFG scale": parameters.guidance,
        "Seed": parameters.seed,
        "Size": f"{parameters.width}x{parameters.height}",
        "Model": parameters.model,
    }
    negative = f"\nNegative prompt: {parameters.negative_prompt}" if parameters.negative_prompt else ""
    return f"{parameters.prompt}{negative}\n" + ", ".join(f"{name}: {value}" for name, value in used.items())
