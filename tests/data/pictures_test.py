"""One way in: whatever a picture is, and however it comes, the same pixels."""

import contextlib
import io
import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from gaze_jax import config as config_lib
from gaze_jax.data import anyres
from gaze_jax.data import images
from gaze_jax.data import naflex

WHITE = [255] * 3


def saved(image, kind, **options):
  out = io.BytesIO()
  image.save(out, kind, **options)
  return out.getvalue()


def chunk(kind, data):
  checksum = struct.pack(">I", zlib.crc32(kind + data))
  return struct.pack(">I", len(data)) + kind + data + checksum


def png(depth, colour, values, *chunks, row=2):
  """A PNG of one row by hand: its depth and type of colour, and its bytes."""
  header = struct.pack(">IIBBBBB", row, 1, depth, colour, 0, 0, 0)
  parts = [chunk(b"IHDR", header), *chunks]
  parts += [chunk(b"IDAT", zlib.compress(b"\0" + values)), chunk(b"IEND", b"")]
  return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def with_chunk(data, added, *, behind):
  """A PNG with one chunk more, before its pixels or behind them."""
  at = data.index(b"IEND" if behind else b"IDAT") - 4
  return data[:at] + added + data[at:]


def noise(mode, size=(7, 5)):
  bands = len(Image.new(mode, (1, 1)).getbands())
  rng = np.random.default_rng(0)
  data = rng.integers(0, 256, (size[1], size[0], bands), np.uint8)
  return Image.frombytes(mode, size, data.tobytes())


def palette(**info):
  image = Image.new("P", (2, 1), 1)
  image.putpalette([9, 9, 9, 255, 0, 0])
  image.putpixel((0, 0), 0)
  return saved(image, "PNG", **info)


def frames(kind):
  first = Image.new("RGBA", (4, 3), (255, 0, 0, 0))
  rest = [Image.new("RGBA", (4, 3), (0, 0, 255, 255))]
  return saved(first, kind, save_all=True, append_images=rest)


def exif(orientation):
  out = Image.Exif()
  out[0x0112] = orientation
  return out


RAMP = np.linspace(0, 65535, 35).astype(np.uint16).reshape(5, 7)
SIDE_ON = noise("RGB")
FILES = {
  "transparent": saved(noise("RGBA"), "PNG"),
  "grey, transparent": saved(noise("LA"), "PNG"),
  "transparent WebP": saved(noise("RGBA"), "WEBP", lossless=True),
  "palette": palette(),
  "palette, transparent": palette(transparency=1),
  "palette, half transparent": palette(transparency=b"\xff\x80"),
  "1 bit": saved(Image.new("1", (3, 2), 1), "PNG"),
  "CMYK": saved(noise("CMYK"), "TIFF"),
  "CMYK JPEG": saved(noise("CMYK"), "JPEG"),
  "YCbCr": saved(noise("YCbCr"), "TIFF"),
  "16 bits": saved(Image.fromarray(RAMP), "PNG"),
  "16 bits TIFF": saved(Image.fromarray(RAMP), "TIFF"),
  "16 bits PGM": saved(Image.fromarray(RAMP), "PPM"),
  "16 bits JPEG 2000": saved(Image.fromarray(RAMP), "JPEG2000"),
  "float": saved(Image.fromarray(np.float32(RAMP / 65535)), "TIFF"),
  "animated GIF": frames("GIF"),
  "animated WebP": frames("WEBP"),
  "animated PNG": frames("PNG"),
  **{
    f"{kind} that lies on its side": saved(SIDE_ON, kind, exif=exif(6))
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")
  },
  "EXIF behind the pixels": with_chunk(
    saved(SIDE_ON, "PNG"),
    chunk(b"eXIf", exif(6).tobytes()[6:]),
    behind=True,
  ),
  "XMP behind the pixels": with_chunk(
    saved(SIDE_ON, "PNG"),
    chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'),
    behind=True,
  ),
  "2 bits, transparent": png(
    2, 0, b"\x40", chunk(b"tRNS", struct.pack(">H", 1))
  ),
  "RGB of 16 bits": png(16, 2, struct.pack(">6H", 9, 256, 65535, 9, 9, 9)),
}


@pytest.mark.parametrize("name", FILES)
def test_a_path_its_bytes_and_its_PIL_image_are_the_same(tmp_path, name):
  path = tmp_path / "file"
  path.write_bytes(FILES[name])
  want = images.decode(path, 10**4)
  assert want.dtype == np.uint8 and want.ndim == 3
  assert images.check(path, 10**4) == want.shape[:2]
  assert ("side" in name or "behind" in name) == (want.shape[:2] == (7, 5))
  loaded, opened = (Image.open(io.BytesIO(FILES[name])) for _ in range(2))
  loaded.load()
  for source in (str(path), FILES[name], opened, want):
    np.testing.assert_array_equal(images.decode(source, 10**4), want)
  if name != "2 bits, transparent":  # PIL has forgotten how deep its file was
    np.testing.assert_array_equal(images.decode(loaded, 10**4), want)
  loaded.crop((0, 0, 1, 1))  # and the image is still the user's


@pytest.mark.parametrize(
  "name, want",
  [
    ("palette", [[9] * 3, [255, 0, 0]]),
    ("palette, transparent", [[9] * 3, WHITE]),
    ("palette, half transparent", [[9] * 3, [255, 127, 127]]),
    ("2 bits, transparent", [WHITE, [0] * 3]),
    ("RGB of 16 bits", [[0, 1, 255], [0, 0, 0]]),
    ("animated GIF", [WHITE] * 4),
    ("animated WebP", [WHITE] * 4),
    ("animated PNG", [WHITE] * 4),
    ("1 bit", [WHITE] * 3),
  ],
)
def test_pixels_by_hand(name, want):
  assert images.decode(FILES[name], 100)[0].tolist() == want


@pytest.mark.parametrize(
  "mode", ["1", "L", "LA", "La", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "HSV"]
)
def test_modes_that_no_file_has(mode):
  image = Image.new(mode, (3, 2))
  assert images.decode(image, 10)[0, 0].tolist() == (
    WHITE if mode in ("LA", "La", "PA", "RGBA", "RGBa", "CMYK") else [0] * 3
  )


def test_premultiplied_colour_and_a_palette_with_alpha():
  image = Image.new("RGBA", (2, 2), (200, 100, 0, 51))
  want = images.decode(image, 10)
  assert want[0, 0].tolist() == [244, 224, 204]
  got = images.decode(image.convert("RGBa"), 10).astype(int)
  assert abs(got - want).max() <= 1
  image = Image.open(io.BytesIO(palette(transparency=b"\xff\x80")))
  image.apply_transparency()
  assert images.decode(image, 10)[0].tolist() == [[9] * 3, [255, 127, 127]]


def test_what_PIL_turned_is_not_turned_again():
  from PIL import ImageOps

  data = saved(SIDE_ON, "PNG", exif=exif(6))
  want = images.decode(data, 100)
  upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
  np.testing.assert_array_equal(images.decode(upright, 100), want)
  assert images.decode(SIDE_ON, 100).shape == (5, 7, 3)


# Values of more than 8 bits.


@pytest.mark.parametrize("top", [200, 255, 256, 4095, 65535])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000", "array"])
def test_16_bits_are_scaled_by_their_type(kind, top):
  grey = np.linspace(0, top, 35).astype(np.uint16).reshape(5, 7)
  image = Image.fromarray(grey)
  out = images.decode(image if kind == "array" else saved(image, kind), 100)
  np.testing.assert_array_equal(out, [[[round(v / 257)] * 3 for v in row]
                                      for row in grey.tolist()])  # fmt: skip


def test_modes_of_32_bits_hold_16(tmp_path):
  for image in (
    Image.fromarray(RAMP.astype(np.int32)),
    Image.frombytes("I;16B", (7, 5), RAMP.astype(">u2").tobytes()),
    Image.open(io.BytesIO(saved(Image.fromarray(np.int32(RAMP)), "TIFF"))),
  ):
    want = np.rint(RAMP / 257)[..., None].repeat(3, -1)
    np.testing.assert_array_equal(images.decode(image, 100), want)


@pytest.mark.parametrize("top", [0.004, 0.5, 1.0])
def test_floats_are_scaled_from_0_to_1(top):
  grey = np.linspace(0, top, 35, dtype=np.float32).reshape(5, 7)
  out = images.decode(saved(Image.fromarray(grey), "TIFF"), 100)
  np.testing.assert_array_equal(
    out[..., 0], np.floor(np.float64(grey) * 255 + 0.5)
  )


@pytest.mark.parametrize(
  "values, says",
  [
    (np.float32([[0, 255]]), "grey from 0 to 255, where mode F .* 0 to 1;"),
    (np.float32([[0, np.nan]]), "grey from nan to nan, where mode F"),
    (np.float32([[-0.1, 0]]), "grey from -0.1 to 0"),
    (np.int32([[-1, 9]]), "grey from -1 to 9, where mode I .* 0 to 65535"),
    (np.int32([[0, 65536]]), "grey from 0 to 65536"),
  ],
)
def test_values_out_of_range_are_refused(values, says):
  image = Image.fromarray(values)
  with pytest.raises(images.ImageError, match=f"^image: {says}"):
    images.decode(image, 100)
  with pytest.raises(images.ImageError, match=says):
    images.decode(saved(image, "TIFF"), 100)


def tiff(bits, photometric, data):
  """A TIFF of one row of two grey values, by hand."""
  tags = {256: 2, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 122,
          277: 1, 278: 1, 279: len(data)}  # fmt: skip
  out = b"II*\0" + struct.pack("<IH", 8, len(tags))
  for tag, value in tags.items():
    out += struct.pack("<HHIHH", tag, 3, 1, value, 0)
  return out + bytes(122 - len(out)) + data


def test_a_TIFF_of_12_bits_and_one_whose_0_is_white():
  twelve = bytes([0x80, 0x0F, 0xFF])  # 2048 and 4095
  sixteen = struct.pack("<HH", 257, 65535)
  for data, want in (
    (tiff(12, 1, twelve), [128, 255]),
    (tiff(16, 1, sixteen), [1, 255]),
    (tiff(16, 0, sixteen), [254, 0]),
  ):
    for source in (data, Image.open(io.BytesIO(data))):
      assert images.decode(source, 10)[0, :, 0].tolist() == want


def test_grey_of_16_bits_with_a_transparent_value():
  clear = chunk(b"tRNS", struct.pack(">H", 300))
  data = png(16, 0, struct.pack(">2H", 300, 257), clear)
  assert images.decode(data, 10)[0, :, 0].tolist() == [255, 1]
  clear = chunk(b"tRNS", struct.pack(">3H", 600, 300, 0))
  data = png(16, 2, struct.pack(">6H", 600, 300, 0, 9, 300, 0), clear)
  assert images.decode(data, 10)[0].tolist() == [WHITE, [0, 1, 0]]


# What is refused.


@pytest.mark.parametrize(
  "shape, kind",
  [
    ((8, 8), np.uint8),
    ((8, 8, 4), np.uint8),
    ((8, 8, 1), np.uint8),
    ((8, 8, 3), np.float32),
    ((8, 8, 3), np.uint16),
    ((8, 8, 3), bool),
    ((2, 8, 8, 3), np.uint8),
  ],
)
def test_arrays_that_are_no_rgb_are_refused_by_name(shape, kind):
  says = f"image: {np.dtype(kind)} .*must be uint8 .height, width, 3. in RGB"
  with pytest.raises(images.ImageError, match=says):
    images.decode(np.zeros(shape, kind), 10**4)


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_what_has_no_pixels_is_refused(size):
  for source in (Image.new("RGB", size), np.zeros((*size, 3), np.uint8)):
    with pytest.raises(images.ImageError, match="image 3: an image without"):
      images.decode(source, 10, "image 3")


def test_images_of_PIL_and_arrays_have_the_same_limit():
  image = Image.new("L", (30, 20))
  for source in (image, np.zeros((20, 30, 3), np.uint8)):
    assert images.decode(source, 600).shape == (20, 30, 3)
    with pytest.raises(images.ImageError, match="30 x 20 = 600 pixels"):
      images.decode(source, 599)


def test_a_mode_that_can_not_be_converted_is_named():
  lab = Image.new("LAB", (2, 2))
  with pytest.raises(images.ImageError, match="mode LAB.*convert it to RGB"):
    images.decode(saved(lab, "TIFF"), 10)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"


@pytest.mark.parametrize(
  "data",
  [
    EPS,
    b"%PDF-1.4\n%%EOF\n",
    b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    saved(Image.new("RGB", (32, 32)), "ICO"),
    saved(Image.new("RGB", (32, 32)), "TGA"),
  ],
  ids=["PostScript", "PDF", "SVG", "HEIC", "ICO", "TGA"],
)
def test_only_raster_formats_that_are_listed_are_opened(tmp_path, data):
  path = tmp_path / "a.jpg"
  path.write_bytes(data)
  for read in (images.decode, images.check):
    with pytest.raises(images.ImageError) as caught:
      read(path, 10**6)
    message = str(caught.value)
    assert message.startswith(f"{path}: not an image file") and (
      "convert it to one of PNG, JPEG" in message
    )


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "BMP", "PPM", "AVIF"])
def test_what_is_listed_is_read_by_content(tmp_path, kind):
  path = tmp_path / "a.jpg"
  path.write_bytes(saved(Image.new("RGB", (16, 8), "white"), kind))
  assert images.decode(path, 128).min() > 250
  assert images.check(path, 128) == (8, 16)


def test_PostScript_that_PIL_has_opened_starts_nothing(monkeypatch):
  from PIL import EpsImagePlugin

  monkeypatch.setattr(
    EpsImagePlugin, "Ghostscript", lambda *a, **k: pytest.fail("started")
  )
  image = Image.open(io.BytesIO(EPS))
  with pytest.raises(images.ImageError, match="image: EPS is not read"):
    images.decode(image, 100)


# EXIF that is broken, and texts that are large.

HEAD = b"Exif\0\0"
ENTRY = HEAD + b"MM\0*\0\0\0\x08\0\x01\x01\x12"  # one tag: orientation
BROKEN = {
  "no header": HEAD + b"\0\x08\0\x02\x01\x12\0\x03",
  "a literal": HEAD + b"b'Exif",
  "a fraction": ENTRY + b"\0\5\0\0\0\1\0\0\0\x1a\0\0\0\0\0\0\0\6\0\0\0\1",
  "a byte": ENTRY + b"\0\1\0\0\0\1\6\0\0\0\0\0\0\0",
  "a text": ENTRY + b"\0\2\0\0\0\2\x36\0\0\0\0\0\0\0",
  "77": ENTRY + b"\0\3\0\0\0\1\0\x4d\0\0\0\0\0\0",
  "cut": ENTRY + b"\0\3\0\0",
  "nothing": HEAD,
}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_EXIF_costs_the_turn_and_not_the_picture(form, name):
  options = dict(dpi=(72, 72)) if form == "JPEG" else {}
  data = saved(SIDE_ON, form, exif=BROKEN[name], **options)
  plain = images.decode(saved(SIDE_ON, form), 100)
  for source in (data, Image.open(io.BytesIO(data))):
    np.testing.assert_array_equal(images.decode(source, 100), plain)
  assert images.check(data, 100) == (5, 7)


def test_broken_EXIF_of_an_AVIF_costs_nothing():
  """It turns by a rule of its own."""
  about = exif(6)
  about[0x010F] = "maker"
  data = saved(SIDE_ON, "AVIF", exif=about)
  at = data.index(b"MM\0*", data.index(b"mdat"))
  broken = data[:at] + b"?" * 4 + data[at + 4 :]
  want = images.decode(data, 100)
  np.testing.assert_array_equal(images.decode(broken, 100), want)
  assert images.check(broken, 100) == want.shape[:2] == (7, 5)


LARGE = zlib.compress(b"a" * 2_000_000)
BESIDE = {
  "zTXt": (b"zTXt", b"Comment\0\0" + LARGE),
  "iTXt": (b"iTXt", b"Comment\0\1\0\0\0" + LARGE),
  "profile": (b"iCCP", b"icc\0\0" + LARGE),
  "EXIF": (b"zTXt", b"Raw profile type exif\0\0" + LARGE),
  "XMP": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LARGE),
  "EXIF that is no text": (b"tEXt", b"Raw profile type exif\0\n\n\nxyz"),
}


@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("name", [*BESIDE, "tEXt", "wrong checksum"])
def test_what_stands_beside_the_pixels_of_a_PNG_does_not_count(name, behind):
  if name in BESIDE:
    added = chunk(*BESIDE[name])
  elif name == "tEXt":
    added = chunk(b"tEXt", b"Comment\0" + bytes(68_000_000))
  else:
    added = chunk(b"tEXt", b"Comment\0a")[:-1] + b"?"
  data = with_chunk(saved(SIDE_ON, "PNG"), added, behind=behind)
  np.testing.assert_array_equal(images.decode(data, 100), np.asarray(SIDE_ON))
  assert images.check(data, 100) == (5, 7)


def test_a_PNG_cut_off_behind_its_header_has_a_size_and_no_pixels():
  data = saved(noise("RGB", (90, 80)), "PNG")
  for cut in (data[:4000], data[: data.index(b"IDAT") + 4]):
    assert images.check(cut, 10**4) == (80, 90)
    with pytest.raises(images.ImageError, match="image: broken image"):
      images.decode(cut, 10**4)


# Memory.


@contextlib.contextmanager
def memory(gigabytes):
  """Lets this process take so much more than it has."""
  with open("/proc/self/statm") as file:
    has = int(file.read().split()[0]) * resource.getpagesize()
  before = resource.getrlimit(resource.RLIMIT_AS)
  limit = has + int(gigabytes * 2**30)
  resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_AS, before)


TILED = config_lib.ModelConfig(
  vision=config_lib.VisionConfig(image_size=336, patch_size=14),
  tiling=config_lib.TilingConfig(
    kind="anyres", pinpoints=((336, 672), (672, 336), (1344, 336))
  ),
)
FITS = {
  "square": lambda image: images.preprocess(image, TILED.vision),
  "crop": lambda image: images.preprocess(
    image, config_lib.VisionConfig(image_size=336, resize="crop")
  ),
  "tiles": lambda image: anyres.squares(image, TILED),
  "padded": lambda image: anyres.padded_square(image, TILED),
  "patches": lambda image: naflex.preprocess(
    image, config_lib.VisionConfig(patch_size=16, max_patches=256)
  ),
}
THIN = [(60_000, 1), (20_000, 1_080), (1, 5_000_000), (5_000_000, 1)]


@pytest.mark.parametrize("size", THIN, ids=str)
@pytest.mark.parametrize("kind", FITS)
def test_memory_is_bounded_whatever_the_aspect(kind, size):
  image = np.full((*size, 3), 77, np.uint8)
  with memory(0.5):
    out = FITS[kind](image)
  pixels = getattr(out, "pixels", out)
  assert pixels.dtype == np.uint8 and (pixels == 77).any()


@pytest.mark.parametrize("mode", ["RGBA", "I;16"])
def test_memory_of_decoding_is_bounded(mode):
  """A pixel takes 4 bytes of PIL and 3 of ours."""
  data = saved(Image.new(mode, (40_000, 500)), "PNG", compress_level=1)
  with memory(0.25):
    assert images.decode(data, 20_000_000).shape == (500, 40_000, 3)


@pytest.mark.parametrize("size", [(40, 300), (300, 40), (9, 200), (31, 90)])
@pytest.mark.parametrize("shorter", [28, 33])
@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_a_picture_cut_before_it_is_scaled_is_the_same(
  monkeypatch, size, shorter, resample
):
  """To a step of 8 bits, as Pillow rounds between rows and columns."""
  rng = np.random.default_rng(0)
  image = rng.integers(64, 192, (*size, 3), np.uint8)
  vision = config_lib.VisionConfig(
    image_size=28,
    resize="crop",
    shorter_side=shorter,
    resample=resample,
  )
  want = images.preprocess(image, vision).astype(int)
  monkeypatch.setattr(images, "MOST_PIXELS", 10)
  got = images.preprocess(image, vision)
  np.testing.assert_allclose(got, want, atol=1)
