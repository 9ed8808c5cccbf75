"""Pictures, pixel by pixel."""

import numpy as np
import pytest
from PIL import Image

from gaze_jax import errors
from gaze_jax.view import overlay
from gaze_jax.view import words as words_lib

SIDE, MARGIN = overlay._PANEL, overlay._MARGIN
REGIONS = np.array([[0, 1], [2, 3]])
GREY = np.full((28, 28, 3), 200, np.uint8)


VIEW = words_lib.View(GREY, REGIONS)


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
  pixels = panel(0, 1, views=[words_lib.View(GREY, regions)])
  assert (pixels[:, : SIDE // 3 - 1] == 76).all()
  assert (pixels[8:-8, SIDE // 3 + 8 : -8] == 200).all()


def test_a_page_has_a_panel_a_word_and_the_image():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (56, 56, 3), np.uint8)
  word = words_lib.Word("fox", np.array([1.0, 0, 0, 0]))
  page = overlay.draw(
    [words_lib.View(image, REGIONS)], [word] * 4, title="What? A fox"
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


def test_what_belongs_to_no_region_is_darkened():
  regions = np.array([[0, -1], [-1, -1]])
  pixels = panel(0.5, views=[words_lib.View(GREY, regions)])
  levels = [middle(pixels, r)[0] for r in range(4)]
  assert levels == [138, 76, 76, 76]
  # Of a row without a region there is a picture all the same.
  assert (panel(views=[words_lib.View(GREY, 0 * REGIONS - 1)]) == 76).all()


def test_a_picture_keeps_its_aspect():
  wide = words_lib.View(np.full((14, 28, 3), 200, np.uint8), REGIONS)
  pixels = panel(0, 0, 0, 0, views=[wide])
  dark = (pixels == 76).all(-1)
  assert dark.sum() == SIDE * SIDE // 2
  assert dark[SIDE // 4 : 3 * SIDE // 4].all() and (pixels[0] == 255).all()
  tall = words_lib.View(np.full((28, 14, 3), 200, np.uint8), REGIONS)
  turned = panel(0, 0, 0, 0, views=[tall])
  np.testing.assert_array_equal(turned, pixels.swapaxes(0, 1))


def frames(count):
  """Frames of one grey each, 4 regions a frame, numbered on."""
  grey = lambda i: np.full((28, 28, 3), 100 + i, np.uint8)
  return [words_lib.View(grey(i), REGIONS + 4 * i) for i in range(count)]


def test_several_views_share_a_panel():
  # Four in a 2 x 2; region 9 is the upper right one of the third.
  pixels = panel(*np.eye(16)[9], views=frames(4))
  quarter = SIDE // 8
  lit = pixels[SIDE // 2 + quarter, 3 * quarter]
  assert lit.tolist() == [102] * 3
  unlit = [
    pixels[quarter, quarter],
    pixels[quarter, SIDE // 2 + quarter],
    pixels[SIDE // 2 + quarter, quarter],
    pixels[SIDE // 2 + quarter, SIDE // 2 + quarter],
  ]
  assert [int(p[0]) for p in unlit] == [
    int((100 + i) * (1 - overlay._VEIL)) for i in (0, 1, 2, 3)
  ]


def test_of_many_views_those_read_most_are_shown_in_order():
  views = frames(40)
  share = np.zeros(160)
  share[4 * 7 + 1] = 0.5
  share[4 * 30 : 4 * 30 + 4] = 1
  shown = overlay._shown(views, share)
  assert shown == [0, 1, 2, 3, 4, 5, 6, 7, 30]
  evenly = overlay._shown(views, None)
  assert evenly[0] == 0 and evenly[-1] == 39 and len(evenly) == 9
  # Numbered, as frames are missing: a black tag with white in it.
  pixels = panel(*share, views=views)
  assert (pixels[:20, :20] == 0).any() and (pixels[:20, :20] > 200).any()


WORDS = [
  words_lib.Word("a", np.array([1.0, 0, 0, 0])),
  words_lib.Word("red", np.array([0, 0, 0, 1.0])),
  words_lib.Word("fox", np.array([0, 0, 0, 1.0])),
]


def test_an_animation_has_a_frame_a_word():
  pages = overlay.animate([VIEW], WORDS, title="What?")
  assert len(pages) == 3 and len({p.size for p in pages}) == 1
  top = 2 * MARGIN + overlay._LINE
  stage = overlay._STAGE
  quarter = stage // 4
  for page, levels in zip(
    pages, [(200, 76), (76, 200), (76, 200)], strict=True
  ):
    pixels = np.asarray(page).astype(int)[top:, MARGIN:]
    at = (pixels[quarter, quarter, 0], pixels[3 * quarter, 3 * quarter, 0])
    assert at == levels
  # The mark goes on to the right, from word to word.
  left = []
  for page in pages:
    below = np.asarray(page)[top + stage :]
    marked = np.nonzero((below == overlay._MARK).all(-1))[1]
    left.append((int(marked.min()), int(marked.max())))
  assert left == sorted(left) and left[0][1] < left[2][0]


def test_a_long_answer_wraps():
  (page, *_) = overlay.animate([VIEW], WORDS * 20, title="What?")
  (short, *_) = overlay.animate([VIEW], WORDS, title="What?")
  assert page.width == short.width == overlay._STAGE + 2 * MARGIN
  assert page.height > short.height + 2 * overlay._LINE
  # Nothing is written into the margin.
  assert (np.asarray(page)[:, -MARGIN + 5 :] == 255).all()


def test_an_animation_of_nothing_said_and_nothing_seen():
  (page,) = overlay.animate([], [], title="What?")
  assert page.height > overlay._STAGE
  (page,) = overlay.animate([VIEW], [], title="What?")
  assert np.asarray(page)[overlay._STAGE // 2, overlay._STAGE // 2, 0] == 200


@pytest.mark.parametrize("ending", ["gif", "webp", "GIF"])
def test_an_animation_is_saved(tmp_path, ending):
  path = tmp_path / f"gaze.{ending}"
  pages = overlay.animate([VIEW], WORDS, title="What?")
  overlay.save_animation(pages, str(path))
  with Image.open(path) as image:
    assert image.format == ending.upper() and image.n_frames == 3
    assert image.info["loop"] == 0
    durations = []
    for i in range(3):
      image.seek(i)
      image.load()
      durations.append(image.info["duration"])
      seen = np.asarray(image.convert("RGB")).astype(int)
      off = abs(seen - np.asarray(pages[i]).astype(int))
      assert off.mean() < 4
  assert durations[0] == durations[1] < durations[2]


@pytest.mark.parametrize("name", ["gaze.png", "b.JPG", "x.webp"])
def test_names_that_pictures_have(name):
  overlay.check_name(name)


@pytest.mark.parametrize("name", ["gaze", "gaze.foo", "gaze.gif", ""])
def test_names_that_no_picture_has(name):
  says = "not a format of pictures; name it .png or .jpg"
  with pytest.raises(errors.GazeError, match=says):
    overlay.check_name(name)


@pytest.mark.parametrize("name", ["gaze.gif", "b.WEBP"])
def test_names_that_animations_have(name):
  overlay.check_name(name, animation=True)


@pytest.mark.parametrize("name", ["gaze", "gaze.png", "gaze.mp4", ""])
def test_names_that_no_animation_has(name):
  says = "not a format of animations; name it .gif or .webp"
  with pytest.raises(errors.GazeError, match=says):
    overlay.check_name(name, animation=True)


@pytest.mark.parametrize("animation", [False, True])
def test_a_folder_that_is_not_there(animation):
  with pytest.raises(errors.GazeError, match="there is no folder nowhere"):
    overlay.check_name("nowhere/gaze.webp", animation=animation)
