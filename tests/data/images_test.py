"""Decoding: what comes out, and what is refused and how."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import transformers
from PIL import Image

import compare
from gaze_jax import config as config_lib
from gaze_jax.data import images
from gaze_jax.models import vision as tower

RED = np.full((20, 30, 3), (255, 0, 0), np.uint8)


def png(array, **options):
  out = io.BytesIO()
  Image.fromarray(array).save(out, "PNG", **options)
  return out.getvalue()


def bomb(width, height):
  """A PNG that claims a size and holds almost nothing."""

  def chunk(kind, data):
    body = kind + data
    return (
      struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
    )

  header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  data = zlib.compress(b"\0" * 100)
  return b"\x89PNG\r\n\x1a\n" + b"".join(
    [chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b"")]
  )


def test_rgb_comes_out_as_it_went_in(tmp_path):
  array = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
  path = tmp_path / "a.png"
  path.write_bytes(png(array))
  for source in (path, str(path), path.read_bytes()):
    out = images.decode(source, 63)
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, array)


def test_transparency_lies_over_white():
  array = np.zeros((2, 2, 4), np.uint8)
  array[0, 0] = (10, 20, 30, 255)
  out = images.decode(png(array), 100)
  assert out[0, 0].tolist() == [10, 20, 30]
  assert out[1, 1].tolist() == [255, 255, 255]


def test_a_palette_with_transparency_lies_over_white():
  image = Image.new("P", (2, 1), 1)
  image.putpalette([0, 0, 0, 9, 9, 9])
  image.putpixel((0, 0), 0)
  out = io.BytesIO()
  image.save(out, "PNG", transparency=0)
  assert images.decode(out.getvalue(), 100)[0].tolist() == [[255] * 3, [9] * 3]


def test_grey_of_8_and_16_bits():
  grey = np.array([[0, 255]], np.uint8)
  assert images.decode(png(grey), 10)[0, :, 0].tolist() == [0, 255]
  deep = np.array([[0, 12850, 65535]], np.uint16)
  assert images.decode(png(deep), 10)[0, :, 0].tolist() == [0, 50, 255]


def test_exif_orientation_is_applied():
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned by a quarter to the right
  array = np.zeros((2, 3, 3), np.uint8)
  array[0, 0] = 255
  out = images.decode(png(array, exif=exif), 100)
  assert out.shape == (3, 2, 3)
  assert out[0, 1].tolist() == [255] * 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_header_knows_the_size_of_what_is_decoded(kind, orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  out = io.BytesIO()
  Image.fromarray(RED).save(out, kind, exif=exif)
  size = (20, 30) if orientation < 5 else (30, 20)
  assert images.check(out.getvalue(), 600) == size
  assert images.decode(out.getvalue(), 600).shape[:2] == size


@pytest.mark.parametrize("read", [images.decode, images.check])
def test_too_many_pixels_are_refused_from_the_header(read, tmp_path):
  path = tmp_path / "large.png"
  path.write_bytes(png(RED))
  assert images.decode(path, 600).shape == (20, 30, 3)
  with pytest.raises(images.ImageError, match="30 x 20 = 600 pixels.*is 599"):
    read(path, 599)
  path.write_bytes(bomb(20_000, 20_000))
  with pytest.raises(images.ImageError, match="large.png.*pixels"):
    read(path, 50_000_000)


def test_a_limit_above_pillows_own_warning_does_not_warn():
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    images.check(bomb(10_000, 10_000), 200_000_000)


@pytest.mark.parametrize("read", [images.decode, images.check])
def test_a_missing_file_and_a_text_are_no_images(read, tmp_path):
  with pytest.raises(images.ImageError, match="none.png: no such file"):
    read(tmp_path / "none.png", 100)
  text = tmp_path / "text.png"
  text.write_text("hello")
  with pytest.raises(images.ImageError, match="text.png: not an image file"):
    read(text, 100)
  with pytest.raises(images.ImageError, match="a folder, and a file is nee"):
    read(tmp_path, 100)


@pytest.mark.parametrize("read", [images.decode, images.check])
@pytest.mark.parametrize(
  "content, what",
  [
    (b"", "the file is empty"),
    (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    (b"<html>404", "a web page"),
  ],
)
def test_what_a_download_left_in_place_of_an_image(
  read, content, what, tmp_path
):
  path = tmp_path / "a.png"
  path.write_bytes(content)
  for source in (path, content):
    with pytest.raises(images.ImageError, match=what):
      read(source, 100)


@pytest.mark.parametrize("read", [images.decode, images.check])
def test_an_address_is_no_file(read):
  with pytest.raises(images.ImageError, match="a.png: an address.*download it"):
    read("https://example.org/a.png", 100)
  written = "data:image/png;base64," + "A" * 10**5
  with pytest.raises(images.ImageError, match="give its bytes") as error:
    read(written, 100)
  assert len(str(error.value)) < 500


def test_a_truncated_image_passes_the_header_check_only(tmp_path):
  path = tmp_path / "short.png"
  array = np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)
  path.write_bytes(png(array)[:3000])
  assert images.check(path, 10_000) == (50, 50)
  with pytest.raises(images.ImageError, match="short.png: broken image"):
    images.decode(path, 10_000)


def test_preprocess_resizes_and_the_tower_normalises():
  vision = config_lib.VisionConfig(image_size=14)
  out = images.preprocess(RED, vision)
  assert out.shape == (14, 14, 3) and out.dtype == np.uint8
  out = tower.normalise(out, vision)
  expected = (np.array([1.0, 0, 0]) - vision.mean) / vision.std
  np.testing.assert_allclose(out[3, 5], expected, rtol=1e-5)


def test_preprocess_does_not_resample_what_fits():
  vision = config_lib.VisionConfig(image_size=28)
  array = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)
  out = images.preprocess(array, vision)
  np.testing.assert_array_equal(out, array)


SIZES = [(28, 28), (40, 40), (37, 90), (91, 30), (17, 20), (28, 300), (9, 200)]


def _photo(height, width):
  """Edges and noise, so that any other filter or offset shows."""
  rng = np.random.default_rng(height * width)
  coarse = rng.integers(0, 256, (4, 5, 3), np.uint8)
  large = Image.fromarray(coarse).resize((width, height), Image.Resampling.BOX)
  noise = rng.integers(-40, 40, (height, width, 3))
  return np.clip(np.asarray(large) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["square", "crop", "smaller crop"])
@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_pixels_are_those_of_transformers(kind, size, resample):
  image = _photo(*size)
  if kind == "square":
    processor = transformers.SiglipImageProcessorPil(
      size={"height": 28, "width": 28},
      resample=Image.Resampling[resample.upper()],
    )
  else:
    # DINOv2's: the shorter side is fitted to more than is kept.
    processor = transformers.CLIPImageProcessorPil(
      size={"shortest_edge": 28 if kind == "crop" else 32},
      crop_size={"height": 28, "width": 28},
      resample=Image.Resampling[resample.upper()],
    )
  vision = config_lib.VisionConfig(
    image_size=28,
    resize="square" if kind == "square" else "crop",
    shorter_side=32 if kind == "smaller crop" else 0,
    resample=resample,
    mean=tuple(processor.image_mean),
    std=tuple(processor.image_std),
  )
  want = processor(Image.fromarray(image))["pixel_values"][0]
  got = tower.normalise(images.preprocess(image, vision), vision)
  assert got.dtype == np.float32
  compare.close(got, want.transpose(1, 2, 0))


def test_a_crop_keeps_the_middle():
  image = np.zeros((2, 7, 3), np.uint8)
  image[:, 2:4] = 255  # 5 pixels are over: 2 on the left, 3 on the right
  vision = config_lib.VisionConfig(image_size=2, resize="crop")
  out = images.preprocess(image, vision)
  np.testing.assert_array_equal(out, np.full((2, 2, 3), 255))
  turned = images.preprocess(image.swapaxes(0, 1), vision)
  np.testing.assert_array_equal(turned, out)
