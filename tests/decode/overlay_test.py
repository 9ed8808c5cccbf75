"""Pictures, pixel by pixel."""

import numpy as np
import pytest
from PIL import Image

from gaze_jax import errors
from gaze_jax.decode import overlay
from gaze_jax.decode import trace

SIDE, MARGIN = overlay._PANEL, overlay._MARGIN
REGIONS = np.array([[0, 1], [2, 3]])
GREY = np.full((28, 28, 3), 200, np.uint8)


VIEW = trace.View(GREY, REGIONS)


def panel(*share, views=(VIEW,)):
  drawn = overlay._panel(views, np.array(share, float), SIDE)
  return np.asarray(drawn).astype(int)


def middle(pixels, region):
  """The pixel in the middle of a region of the 2 x 2."""
  y, x = divmod(region, 2)
  return pixels[SIDE // 4 + y * SIDE // 2, SIDE // 4 + x * SIDE // 2]


def test_a_region_read_by_all_heads_is_unchanged_inside_its_frame():
  pixels = panel(1, 0, 0, 0)
  inside = pixels[6 : SIDE // 2 - 6, 6 : SIDE // 2 - 6]
  assert (inside == 200).all()


def test_a_region_that_none_reads_is_darker():
  pixels = panel(1, 0, 0, 0)
  for region in (1, 2, 3):
    # 200 * (1 - 0.62), and no frame anywhere in it.
    assert middle(pixels, region).tolist() == [76, 76, 76]
  assert (pixels[SIDE // 2 :] == 76).all()


def test_brightness_follows_the_share_of_heads():
  pixels = panel(1, 0.5, 0.25, 0)
  levels = [middle(pixels, r)[0] for r in range(4)]
  assert levels == [200, 138, 107, 76]  # 200 * (1 - 0.62 * (1 - share))


def test_the_frame_is_as_opaque_as_the_share():
  tint = np.array(overlay._TINT)
  full, half = panel(1, 0, 0, 0), panel(0.5, 0, 0, 0)
  at = (3, SIDE // 4)  # on the upper edge of region 0
  assert full[at].tolist() == tint.tolist()
  expected = 0.5 * tint + 0.5 * 138
  np.testing.assert_allclose(half[at], expected, atol=2)


def test_regions_of_uneven_size():
  regions = np.array([[0, 1, 1]] * 3)
  pixels = panel(0, 1, views=[trace.View(GREY, regions)])
  assert (pixels[:, : SIDE // 3 - 1] == 76).all()
  assert (pixels[8:-8, SIDE // 3 + 8 : -8] == 200).all()


def test_a_page_has_a_panel_a_word_and_the_image():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (56, 56, 3), np.uint8)
  word = trace.Word("fox", np.array([1.0, 0, 0, 0]))
  page = overlay.draw(
    [trace.View(image, REGIONS)], [word] * 4, title="What? A fox"
  )
  assert page.mode == "RGB"
  assert page.width == 4 * (SIDE + MARGIN) + MARGIN
  pixels = np.asarray(page)
  top = 2 * MARGIN + 24
  assert page.height == top + 2 * (SIDE + overlay._CAPTION)
  plain = Image.fromarray(image).resize((SIDE, SIDE), Image.BICUBIC)
  shown = pixels[top : top + SIDE, MARGIN : MARGIN + SIDE]
  np.testing.assert_array_equal(shown, plain)
  assert (pixels[MARGIN : MARGIN + 24] < 100).any()  # the title
  assert (pixels[:, :MARGIN] == 255).all()


def test_a_long_title_and_no_word():
  page = overlay.draw([VIEW], [], title="word " * 60)
  assert page.width == SIDE + 2 * MARGIN and page.height > SIDE + 200


@pytest.mark.parametrize("name", ["gaze.png", "b.JPG", "x.webp"])
def test_names_that_pictures_have(name):
  overlay.check_name(name)


@pytest.mark.parametrize("name", ["gaze", "gaze.foo", "gaze.json", ""])
def test_names_that_no_picture_has(name):
  with pytest.raises(errors.GazeError, match="not a format of pictures"):
    overlay.check_name(name)
