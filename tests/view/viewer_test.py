"""The page as text: what is in it, and that nothing gets out of its place."""

import base64
import hashlib
import html.parser
import io
import json
import zlib

import numpy as np
import pytest
from PIL import Image

from gaze_jax import errors
from gaze_jax.view import viewer
from gaze_jax.view import words as words_lib

BUDGET = dict(top_k=3, regions=16, visual_kv=0.215, unique=0.366)
REGIONS = np.array([[0, 0, 1], [2, 2, 3]])
GREY = np.full((40, 60, 3), 200, np.uint8)


class Page(html.parser.HTMLParser):
  """Elements by name, each its attributes and text, as a browser reads it."""

  def __init__(self, text):
    super().__init__()
    self.elements = {}
    self._open = [{}, ""]
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.elements.setdefault(tag, []).append([dict(attributes), ""])
    self._open = self.elements[tag][-1]

  def handle_endtag(self, tag):
    self._open = [{}, ""]

  def handle_data(self, data):
    self._open[1] += data

  @property
  def data(self):
    (text,) = [
      text
      for attributes, text in self.elements["script"]
      if attributes.get("id") == "data"
    ]
    return json.loads(text)


def render(views=(), words=(), **options):
  options = (
    dict(question="What?", answer="", budget=BUDGET, accounting={}) | options
  )
  return viewer.render(views, words, **options)


def word(chosen, dense=None, scores=None, text="fox"):
  chosen = np.asarray(chosen, np.float32)
  return words_lib.Word(text, chosen.mean((0, 1)), chosen, scores, dense)


def unpack(packed, words, regions):
  flat = np.frombuffer(zlib.decompress(base64.b64decode(packed["bytes"])), "u1")
  return flat.reshape(words, packed["layers"], packed["heads"], regions)


def test_the_data_by_hand():
  chosen = [[[1, 0, 0, 0], [0, 0.5, 0, 0.5]]]
  dense = np.array([[[0.25, 0.01, 0, 0], [1, 0, 0, 0]]], np.float32)
  scores = np.array([[[-1, 1, 0, -np.inf], [1, 1, 1, 1]]], np.float32)
  data = Page(
    render(
      [words_lib.View(GREY, REGIONS)],
      [word(chosen, dense, scores), word(chosen, dense, scores, text="red")],
      answer="fox red",
      accounting={"visual tokens": "144"},
      noun="image",
    )
  ).data
  assert data["words"] == ["fox", "red"] and data["answer"] == "fox red"
  assert data["question"] == "What?" and data["noun"] == "image"
  assert data["shape"] == {"layers": 1, "heads": 2, "regions": 4}
  assert data["accounting"] == [["visual tokens", "144"]]
  assert data["budget"] == BUDGET
  (view,) = data["views"]
  assert (view["rows"], view["columns"]) == (2, 3)
  boxes = [[0, 0, 0, 2, 1], [1, 2, 0, 3, 1], [2, 0, 1, 2, 2], [3, 2, 1, 3, 2]]
  assert view["boxes"] == boxes
  bytes_of = lambda name: unpack(data[name], 2, 4)[0, 0].tolist()
  assert bytes_of("chosen") == [[255, 0, 0, 0], [0, 128, 0, 128]]
  # 255 * sqrt: 0.5, 0.1, 0 and 1.
  assert bytes_of("dense") == [[128, 26, 0, 0], [255, 0, 0, 0]]
  # 254 steps from -1 to 1; 255 where there is none.
  assert bytes_of("scores") == [[0, 254, 127, 255], [254] * 4]
  low, step = data["scores"]["low"], data["scores"]["step"]
  assert (low, round(step * 254, 6)) == (-1, 2)


def test_what_was_not_recorded_is_not_in_the_page():
  chosen = np.zeros((1, 1, 4))
  dense = np.zeros((1, 1, 4), np.float32)
  words = [word(chosen, dense), word(chosen)]
  data = Page(render([words_lib.View(GREY, REGIONS)], words)).data
  assert data["dense"] is data["scores"] is None and data["chosen"]


def test_regions_that_no_view_shows_are_left_out():
  """A row's arrays have room for more regions than there are."""
  chosen = np.zeros((2, 3, 90))
  scores = np.full((2, 3, 90), 1e9, np.float32)
  scores[..., :4] = 2
  data = Page(
    render([words_lib.View(GREY, REGIONS)], [word(chosen, None, scores)])
  ).data
  assert data["shape"] == {"layers": 2, "heads": 3, "regions": 4}
  assert unpack(data["chosen"], 1, 4).shape == (1, 2, 3, 4)
  assert data["scores"]["low"] == 0
  np.testing.assert_allclose(data["scores"]["step"] * 254, 2)


def test_tokens_that_have_no_region():
  regions = np.array([[0, 0, -1, -1], [-1, 0, -1, 1], [0, 0, 0, 1]])
  (view,) = Page(render([words_lib.View(GREY, regions)])).data["views"]
  assert view["bare"] == [[2, 0, 4, 1], [0, 1, 1, 2], [2, 1, 3, 2]]
  assert view["boxes"] == [[0, 0, 0, 3, 3], [1, 3, 1, 4, 3]]


def test_the_least_share_is_not_lost():
  share = np.array([0, 1 / 2000, 1 / 255, 0.5, 1])
  assert viewer._share_bytes(share).tolist() == [0, 1, 1, 128, 255]


def test_nothing_said_and_nothing_seen():
  data = Page(render()).data
  assert data["words"] == data["views"] == [] and data["chosen"] is None
  data = Page(render([], [word(np.zeros((1, 2, 5)))])).data
  assert data["shape"] == {"layers": 1, "heads": 2, "regions": 0}
  empty = [words_lib.View(GREY, REGIONS * 0 - 1)]
  assert Page(render(empty)).data["views"][0]["boxes"] == []


NASTY = (
  "</script><script>alert(1)</script><!-- <img src=x onerror=alert(1)>"
  " &amp; \u2028\u2029 @@STYLE@@ '\" \\u003c \x00 🦊 \ud800"
)


def test_no_text_is_taken_for_markup():
  chosen = np.zeros((1, 1, 4))
  plain = render([words_lib.View(GREY, REGIONS)], [word(chosen)])
  page = render(
    [words_lib.View(GREY, REGIONS)],
    [word(chosen, text=NASTY)],
    question=NASTY,
    answer=NASTY,
    accounting={NASTY: NASTY},
    noun=NASTY,
  )
  count = lambda text: {k: len(v) for k, v in Page(text).elements.items()}
  assert count(page) == count(plain)
  data = Page(page).data
  told = [data["question"], data["answer"], data["noun"], *data["words"]]
  assert set(told + data["accounting"][0]) == {NASTY}
  start = page.index('type="application/json">')
  script = page[start + 24 : page.index("</script>", start)]
  assert script.isascii() and not set("<>&") & set(script)
  page.encode("utf-8")  # the lone surrogate of a title is gone


def test_the_policy_lets_our_parts_run_and_nothing_else():
  elements = Page(render()).elements
  (policy,) = [
    m["content"]
    for m, _ in elements["meta"]
    if m.get("http-equiv") == "Content-Security-Policy"
  ]
  rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
  digest = lambda text: (
    "'sha256-"
    + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    + "'"
  )
  assert rules == {
    "default-src": "'none'",
    "img-src": "data:",
    "style-src": digest(elements["style"][0][1]),
    "script-src": digest(elements["script"][-1][1]),
    "base-uri": "'none'",
    "form-action": "'none'",
  }
  assert "http:" not in viewer._part("viewer.html")
  for name in ("viewer.html", "viewer.css", "viewer.js"):
    part = viewer._part(name).replace("http://www.w3.org/2000/svg", "")
    assert "//www" not in part and "https:" not in part


def noise(height, width, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, 3), np.uint8)


def decoded(view):
  head, data = view["picture"].split(",")
  assert head == "data:image/jpeg;base64"
  image = Image.open(io.BytesIO(base64.b64decode(data)))
  assert image.size == (view["width"], view["height"])
  return image


@pytest.mark.parametrize(
  "count, shape, size",
  [
    (1, (40, 60), (60, 40)),  # never enlarged
    (1, (1500, 3000), (1024, 512)),
    (8, (600, 600), (512, 512)),
    (32, (300, 600), (256, 128)),
    (600, (80, 80), (64, 64)),
  ],
)
def test_pictures_are_as_large_as_their_number_allows(count, shape, size):
  # One array serves all, so the test is quick.
  picture = np.zeros((*shape, 3), np.uint8)
  views = viewer._views([words_lib.View(picture, REGIONS)] * count)
  assert {decoded(v).size for v in (views[0], views[-1])} == {size}


def test_a_picture_is_what_was_given():
  picture = np.full((30, 40, 3), (250, 120, 10), np.uint8)
  (view,) = viewer._views([words_lib.View(picture, REGIONS)])
  off = np.asarray(decoded(view)).astype(int) - picture
  assert abs(off).max() <= 3


def test_a_picture_of_noise():
  """More than 2 bytes a pixel, where Pillow's optimized JPEG gives up."""
  picture = noise(700, 700)
  assert decoded(viewer._views([words_lib.View(picture, REGIONS)])[0]).size == (
    700,
    700,
  )


def test_many_frames_make_no_giant_page():
  frames = [
    words_lib.View(noise(300, 300, i), REGIONS + 4 * i) for i in range(99)
  ]
  assert len(render(frames)) < 6e6  # noise is the worst there is


@pytest.mark.parametrize(
  "deflated, raw, layers, heads",
  [
    (10**6, 10**6, 3, 4),
    (10**6, 5 * 3 * 20, 3, 1),  # too large before it is deflated
    (1000, 10**6, 3, 1),
    (250, 10**6, 1, 1),
    (1, 1, 1, 1),
  ],
)
def test_arrays_that_are_too_large_are_averaged(
  monkeypatch, deflated, raw, layers, heads
):
  monkeypatch.setattr(viewer, "_DEFLATED", deflated)
  monkeypatch.setattr(viewer, "_RAW", raw)
  mass = np.random.default_rng(0).random((5, 3, 4, 20)).astype(np.float32)
  packed = viewer._pack(mass, viewer._mass_bytes)
  assert (packed["layers"], packed["heads"]) == (layers, heads)
  out = (unpack(packed, 5, 20) / 255) ** 2
  wanted = mass
  if heads == 1:
    wanted = wanted.mean(2, keepdims=True)
  if layers == 1:
    wanted = wanted.mean(1, keepdims=True)
  np.testing.assert_allclose(out, wanted, atol=4e-3)


def test_a_missing_score_does_not_spoil_the_mean():
  scores = np.array([[[[1, 3]], [[3, -np.inf]]]], np.float32)
  scores = np.concatenate([scores, scores], axis=2)
  mean = words_lib.finite_mean(scores, (1, 2))
  assert mean.tolist() == [[[[2, 3]]]]


def test_names_of_pages(tmp_path):
  viewer.check_name("gaze.html")
  viewer.check_name(str(tmp_path / "GAZE.HTM"))
  for name in ("gaze", "gaze.png", ""):
    with pytest.raises(errors.GazeError, match="is a page; name it .html"):
      viewer.check_name(name)
  with pytest.raises(errors.GazeError, match="there is no folder nowhere"):
    viewer.check_name("nowhere/gaze.html")
