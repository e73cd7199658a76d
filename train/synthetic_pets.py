"""Draw labelled cartoon pets, so that all commands can be tried without a download.

    python train/synthetic_pets.py --out build/pictures --count 400 --seed 0

The pictures are called Cat_0.jpg, Dog_1.png ... as in fastai's pets, and have the defects of real ones: all
sizes, shapes and colour modes, EXIF orientations, suffixes that differ from the format, one truncated file.
"""

import argparse
import colorsys
import io
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from PIL import Image, ImageDraw, ImageOps

INK = (38, 32, 40)
WHITE = (252, 250, 246)
# How an upright picture is stored under EXIF orientation 2 ... 8; a viewer that applies EXIF undoes it.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
# Suffix, Pillow format, mode and share of the pictures.
FILES = [
    (".jpg", "JPEG", "RGB", 70),
    (".jpg", "JPEG", "L", 6),
    (".jpg", "JPEG", "CMYK", 6),
    (".png", "PNG", "RGBA", 9),
    (".gif", "GIF", "P", 9),
]


class Parser(argparse.ArgumentParser):
    """Reports an invalid command line as one sentence, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"error: {message}: see {self.prog} --help\n")


@dataclass
class Pen:
    """Draw in the pet's own coordinates (its head has a radius of about 1, y points down)."""

    draw: ImageDraw.ImageDraw
    x: float
    y: float
    scale: float
    tilt: float

    def to_pixels(self, points: list) -> list:
        """Return `points` in pixels of the picture."""
        cos, sin = math.cos(self.tilt) * self.scale, math.sin(self.tilt) * self.scale
        return [(self.x + u * cos - v * sin, self.y + u * sin + v * cos) for u, v in points]

    def shape(self, points: list, fill: tuple, outline: tuple | None = INK) -> None:
        """Fill a polygon and, unless `outline` is None, draw its edge."""
        corners = self.to_pixels(points)
        self.draw.polygon(corners, fill)
        if outline:
            self.draw.line([*corners, *corners[:2]], outline, round(self.scale * 0.06), joint="curve")

    def oval(self, u: float, v: float, ru: float, rv: float, fill: tuple, tilt=0.0, outline=INK) -> None:
        """Fill an ellipse round (u, v) with the radii `ru` and `rv`, rotated by `tilt` radians."""
        turned = Pen(self.draw, u, v, 1, tilt)
        steps = [2 * math.pi * i / 48 for i in range(48)]
        self.shape(turned.to_pixels([(ru * math.cos(a), rv * math.sin(a)) for a in steps]), fill, outline)

    def line(self, points: list, width: float = 0.06) -> None:
        """Draw an open line of `width`."""
        self.draw.line(self.to_pixels(points), INK, max(1, round(self.scale * width)), joint="curve")


def shade(rgb: tuple, amount: float) -> tuple:
    """Return `rgb` moved towards white (amount > 0) or black (amount < 0)."""
    towards = 255 if amount > 0 else 0
    return tuple(round(c + (towards - c) * abs(amount)) for c in rgb)


def colour(rng: random.Random, light: tuple[float, float]) -> tuple:
    """Return a random colour whose lightness lies in the range `light` (0 to 1)."""
    hls = rng.random(), rng.uniform(*light), rng.uniform(0.25, 0.8)
    return tuple(round(255 * c) for c in colorsys.hls_to_rgb(*hls))


def eyes(pen: Pen, u: float, v: float, r: float, iris: tuple = INK) -> None:
    """Draw two shining eyes at (-u, v) and (u, v)."""
    for side in (-u, u):
        pen.oval(side, v, r, r, iris)
        pen.oval(side, v, r * 0.55, r * 0.8, INK, outline=None)
        pen.oval(side - r * 0.3, v - r * 0.4, r * 0.3, r * 0.3, WHITE, outline=None)


def smile(pen: Pen, v: float, r: float) -> None:
    """Draw the two arcs under a nose at height `v`."""
    for side in (-1, 1):
        arc = [math.pi * i / 12 for i in range(13)]
        pen.line([(side * r * (1 - math.cos(a)), v + r * math.sin(a)) for a in arc])


def cat(pen: Pen, fur: tuple, rng: random.Random) -> None:
    """Pointed ears, a striped brow and whiskers."""
    for s in (-1, 1):
        pen.shape([(s * 0.15, -0.75), (s * 0.86, -1.35), (s * 0.95, -0.25)], fur)
        pen.shape([(s * 0.38, -0.8), (s * 0.76, -1.1), (s * 0.8, -0.5)], (240, 160, 170), outline=None)
    pen.oval(0, 0, 1.05, 0.9, fur)
    for u in (-0.22, 0, 0.22):
        pen.shape([(u - 0.06, -0.84), (u + 0.06, -0.84), (u, -0.45)], shade(fur, -0.4), outline=None)
    eyes(pen, 0.42, -0.1, 0.2, colour(rng, (0.5, 0.7)))
    for s in (-1, 1):
        for dv in (-0.12, 0.05, 0.22):
            pen.line([(s * 0.45, 0.32 + dv / 2), (s * 1.3, 0.26 + dv * 1.7)], 0.04)
    pen.shape([(-0.12, 0.2), (0.12, 0.2), (0, 0.34)], (235, 120, 140))
    smile(pen, 0.36, 0.15)


def dog(pen: Pen, fur: tuple, rng: random.Random) -> None:
    """Hanging ears, a patch round one eye, a big nose and a tongue."""
    pen.oval(0, 0, 0.92, 1.0, fur)
    patch = rng.choice((-1, 1))
    pen.oval(patch * 0.4, -0.25, 0.34, 0.42, shade(fur, -0.3), tilt=patch * 0.2, outline=None)
    for s in (-1, 1):
        pen.oval(s * 0.98, 0.0, 0.3, 0.8, shade(fur, -0.45), tilt=-s * 0.25)
    eyes(pen, 0.38, -0.25, 0.15)
    pen.shape([(-0.17, 0.6), (0.17, 0.6), (0.2, 1.0), (0, 1.12), (-0.2, 1.0)], (235, 95, 110))
    pen.oval(0, 0.4, 0.52, 0.4, shade(fur, 0.65))
    pen.oval(0, 0.2, 0.25, 0.18, INK)
    smile(pen, 0.45, 0.2)


def rabbit(pen: Pen, fur: tuple, rng: random.Random) -> None:
    """Long ears, cheeks and two front teeth."""
    lean = rng.uniform(0.05, 0.3)
    for s in (-1, 1):
        pen.oval(s * (0.3 + lean), -1.25, 0.25, 0.85, fur, tilt=s * lean)
        pen.oval(s * (0.3 + lean), -1.25, 0.12, 0.62, (245, 175, 185), tilt=s * lean, outline=None)
    pen.oval(0, 0, 0.88, 0.85, fur)
    pen.shape([(-0.15, 0.4), (0.15, 0.4), (0.15, 0.75), (-0.15, 0.75)], WHITE)
    pen.line([(0, 0.45), (0, 0.75)], 0.04)
    for s in (-1, 1):
        pen.oval(s * 0.27, 0.36, 0.28, 0.22, shade(fur, 0.7), outline=None)
        pen.oval(s * 0.62, 0.25, 0.14, 0.1, (245, 160, 170), outline=None)
    eyes(pen, 0.36, -0.18, 0.17)
    pen.oval(0, 0.2, 0.12, 0.09, (235, 120, 140))


def owl(pen: Pen, fur: tuple, rng: random.Random) -> None:
    """A round body with wings and a barred breast, huge eyes and a beak."""
    for s in (-1, 1):
        pen.shape([(s * 0.2, -0.8), (s * 0.8, -1.2), (s * 0.85, -0.4)], fur)
    pen.oval(0, 0.25, 0.98, 1.25, fur)
    pen.oval(0, 0.75, 0.6, 0.65, shade(fur, 0.6), outline=None)
    for row in range(3):
        for u in (-0.3, 0, 0.3):
            v = 0.55 + 0.25 * row
            pen.line([(u - 0.1, v), (u, v + 0.1), (u + 0.1, v)], 0.05)
    for s in (-1, 1):
        pen.oval(s * 0.95, 0.5, 0.25, 0.75, shade(fur, -0.35), tilt=-s * 0.15)
        pen.oval(s * 0.42, -0.25, 0.44, 0.44, WHITE)
    eyes(pen, 0.4, -0.25, 0.24, colour(rng, (0.45, 0.65)))
    pen.shape([(-0.15, -0.02), (0.15, -0.02), (0, 0.32)], (245, 165, 50))


PETS = {"Cat": cat, "Dog": dog, "Owl": owl, "Rabbit": rabbit}


def scenery(draw: ImageDraw.ImageDraw, width: int, height: int, rng: random.Random) -> None:
    """Draw a striped, spotted or plain background with a few shapes on it."""
    wall = colour(rng, (0.55, 0.85))
    draw.rectangle((0, 0, width, height), wall)
    other, step = shade(wall, rng.choice((-0.15, 0.25))), rng.randint(width // 10, width // 5)
    pattern = rng.choice(("plain", "stripes", "spots"))
    for x in range(0, width + step, step) if pattern != "plain" else ():
        if pattern == "stripes":
            draw.rectangle((x, 0, x + step // 2, height), other)
        else:
            for y in range(0, height + step, step):
                draw.circle((x, y), step // 4, other)
    for _ in range(rng.randint(2, 7)):
        draw.regular_polygon(
            (rng.randint(0, width), rng.randint(0, height), rng.randint(width // 30, width // 9)),
            rng.choice((3, 4, 5, 40)),
            rng.randint(0, 359),
            colour(rng, (0.4, 0.8)),
        )


def picture(kind: str, rng: random.Random) -> Image.Image:
    """Draw one `kind` of PETS: an RGB picture 120 to 400 pixels wide and high."""
    width, height = rng.randint(120, 400), rng.randint(120, 400)
    # Drawn at double size and scaled down, because ImageDraw has no antialiasing.
    im = Image.new("RGB", (2 * width, 2 * height))
    draw = ImageDraw.Draw(im)
    scenery(draw, *im.size, rng)
    scale = min(im.size) * rng.uniform(0.2, 0.28)
    x = rng.uniform(0.45, 0.55) * im.width
    y = rng.uniform(0.52, 0.6) * im.height
    PETS[kind](Pen(draw, x, y, scale, rng.gauss(0, 0.12)), colour(rng, (0.3, 0.75)), rng)
    return im.resize((width, height), Image.Resampling.LANCZOS)


def encode(im: Image.Image, form: str, mode: str, orientation: int) -> bytes:
    """Return the RGB picture as a file's bytes, stored under the EXIF `orientation` (1 to 8)."""
    exif = Image.Exif()
    if orientation != 1:
        im = im.transpose(STORED[orientation])
        exif[0x0112] = orientation
    if mode == "RGBA":
        im.putalpha(ImageOps.expand(Image.new("L", (im.width - 16, im.height - 16), 255), 8, 160))
    file = io.BytesIO()
    im.convert(mode).save(file, form, **({"exif": exif, "quality": 88} if form == "JPEG" else {}))
    return file.getvalue()


def draw(folder: Path, count: int = 400, seed: int = 0) -> Path:
    """Write `count` pictures, the same for the same `seed`, and one truncated file; return `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)  # noqa: S311
    kinds = list(PETS)
    for i in range(count):
        suffix, form, mode, _ = rng.choices(FILES, [share for *_, share in FILES])[0]
        if i in (1, 2):  # as in pets: a PNG and a GIF that are called .jpg
            suffix, form, mode = [(".jpg", "PNG", "RGBA"), (".jpg", "GIF", "P")][i - 1]
        orientation = rng.choice((1, 1, 1, 1, 1, 1, *STORED)) if form == "JPEG" else 1
        kind = kinds[i % len(kinds)]
        data = encode(picture(kind, rng), form, mode, orientation)
        (folder / f"{kind}_{i}{suffix}").write_bytes(data)
    whole = encode(picture("Cat", rng), "JPEG", "RGB", 1)
    (folder / f"Cat_{count}.jpg").write_bytes(whole[: len(whole) // 2])
    return folder


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--count", type=int, default=400, help="how many pictures (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same pictures (default: %(default)s)")
    args = parser.parse_args(argv)
    draw(args.out, args.count, args.seed)
    print(f"wrote {args.count} pictures and one broken file to {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
