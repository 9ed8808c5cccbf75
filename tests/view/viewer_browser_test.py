"""The page in headless Chromium: what is clicked, and what is seen then.

With GAZE_WRITE_DOCS=FILE.html a picture of that page, such as a model's, is
written to docs/viewer.png; with GAZE_WRITE_DOCS=1 one of the test's own.
"""

import contextlib
import http.server
import os
import pathlib
import shutil
import threading

import numpy as np
import pytest
from PIL import Image
from playwright import sync_api

from gaze_jax.layout import grid
from gaze_jax.view import viewer
from gaze_jax.view import words as words_lib

DOCS = pathlib.Path(__file__).parent.parent.parent / "docs"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
# As root and without a network; the last three keep it from asking for one.
FLAGS = (
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
)
TEXTS = ["a", "red", "fox", "sleeps"]
LAYERS, HEADS, SIDE = 2, 3, 4  # regions: SIDE x SIDE to a frame


@pytest.fixture(scope="module")
def browser():
  found = filter(None, map(shutil.which, PROGRAMS))
  program = next(found, None)
  assert program, "no Chromium on PATH; launch/test.sh installs it"
  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(
      executable_path=program, args=list(FLAGS)
    )
    yield browser
    browser.close()


def made(frames, seed=0, budget=3):
  """Views of a gradient, and words whose heads read `budget` regions each."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:96, :96].astype(np.uint8)
  one = grid.region_map(12, 12, (3, 3, 1))
  views = [
    words_lib.View(
      np.stack([2 * x, 2 * y, np.full_like(x, 40 + 5 * i)], -1),
      one + SIDE**2 * i,
    )
    for i in range(frames)
  ]
  shape = (LAYERS, HEADS, SIDE**2 * frames)
  words = []
  for text in TEXTS:
    scores = rng.normal(size=shape).astype(np.float32)
    rank = (-scores).argsort(-1).argsort(-1)
    chosen = (rank < budget).astype(np.float32)
    exp = np.exp(2 * scores)
    dense = 0.75 * exp / exp.sum(-1, keepdims=True)
    words.append(
      words_lib.Word(text, chosen.mean((0, 1)), chosen, scores, dense)
    )
  return views, words


def render(views, words, **options):
  regions = sum(len(np.unique(v.regions)) for v in views)
  options = (
    dict(
      question="What sleeps?",
      answer=" ".join(w.text for w in words),
      budget=dict(top_k=3, regions=regions, visual_kv=0.215, unique=1.028),
      accounting={"visual tokens": "144", "decode step": "1.5 ms"},
    )
    | options
  )
  return viewer.render(views, words, **options)


@pytest.fixture
def opened(browser, tmp_path):
  """Opens a page; at the end, nothing may have gone wrong in it."""
  seen = {"console": [], "error": [], "request": []}
  with contextlib.ExitStack() as stack:

    def open_page(text, *, width=1100, script=True, **options):
      file = tmp_path / "gaze.html"
      file.write_text(text, encoding="utf-8")
      context = browser.new_context(
        viewport={"width": width, "height": 800},
        java_script_enabled=script,
        **options,
      )
      stack.callback(context.close)
      page = context.new_page()
      page.set_default_timeout(10_000)
      page.on("console", lambda m: seen["console"].append(m.text))
      page.on("pageerror", lambda e: seen["error"].append(str(e)))
      page.on("request", lambda r: seen["request"].append(r.url))
      page.goto(file.as_uri())
      return page

    yield open_page
  assert seen["console"] == seen["error"] == []
  asked = [u for u in seen["request"] if not u.startswith(("file:", "data:"))]
  assert asked == []


@pytest.fixture
def image(opened):
  """The page of one image, and its words."""
  views, words = made(1)
  page = opened(render(views, words))
  page.wait_for_selector("#stage:not([hidden])")
  return page, words


def button(page, text):
  return page.locator("#words").get_by_role("button", name=text, exact=True)


def lit(page, panel):
  """Regions that a panel lights, each with its value."""
  groups = page.locator(f"#{panel} .picture g[data-lit=true]")
  return groups.evaluate_all(
    "all => Object.fromEntries("
    "all.map(g => [g.dataset.region, Number(g.dataset.value)]))"
  )


def drawn(page, panel):
  """Opacity of each rectangle of a panel: [fill, frame] by region."""
  return page.locator(f"#{panel} .picture g").evaluate_all(
    "all => Object.fromEntries(all.map(g => [g.dataset.region,"
    " [...g.querySelectorAll('rect')].map(r => Number("
    "r.getAttribute('stroke-opacity') ?? r.getAttribute('fill-opacity')))]))"
  )


def expected(values):
  """As `lit`, of float [R]."""
  return {str(r): float(v) for r, v in enumerate(values) if v > 0}


def assert_shows(page, word, layers=slice(None), heads=slice(None)):
  """Both panels show just what the word's arrays hold."""
  pick = lambda a: a[layers][:, heads].mean((0, 1))
  for panel, array in (("gaze", word.chosen), ("dense", word.dense)):
    seen, wanted = lit(page, panel), expected(pick(array))
    if panel == "gaze":
      assert seen.keys() == wanted.keys()
    else:  # a mass of less than a thousandth may be rounded to none
      assert wanted.keys() >= seen.keys()
      seen = dict.fromkeys(wanted, 0.0) | seen
    for region, value in wanted.items():
      assert abs(seen[region] - value) < 6e-3, (panel, region)


def test_a_click_on_a_word_shows_its_regions(image):
  page, words = image
  assert page.title() == "What sleeps?"
  assert page.get_by_role("heading", level=1).inner_text() == "What sleeps?"
  assert_shows(page, words[0])
  for number in (2, 1, 3, 0):
    button(page, TEXTS[number]).click()
    assert_shows(page, words[number])
    pressed = [
      button(page, t).get_attribute("aria-pressed") == "true" for t in TEXTS
    ]
    assert pressed == [i == number for i in range(len(TEXTS))]


def test_brightness_follows_the_share(image):
  page, words = image
  share = words[0].chosen.mean((0, 1))
  level = share / share.max()
  for region, (veil, frame) in drawn(page, "gaze").items():
    assert abs(veil - 0.62 * (1 - level[int(region)])) < 0.01
    assert abs(frame - level[int(region)]) < 0.01
  mass = words[0].dense.mean((0, 1))
  for region, (heat,) in drawn(page, "dense").items():
    assert abs(heat - 0.85 * mass[int(region)] / mass.max()) < 0.01
  top = page.locator("#gaze .top").inner_text()
  assert top == f"{100 * share.max():.0f}\u00a0% of heads"


def test_regions_lie_where_they_are(image):
  """Region 6 of a 4 x 4: second row, third column, and inside the picture."""
  page, _ = image
  picture = page.locator("#gaze .picture img").bounding_box()
  box = page.locator("#gaze g[data-region='6'] .veil").bounding_box()
  part = lambda at, size: (box[at] - picture[at]) / picture[size]
  assert abs(part("x", "width") - 0.5) < 0.01
  assert abs(part("y", "height") - 0.25) < 0.01
  assert abs(box["width"] / picture["width"] - 0.25) < 0.01
  assert abs(box["height"] / picture["height"] - 0.25) < 0.01


def test_layer_and_head_are_picked(image):
  page, words = image
  layer, head = page.get_by_label("Layer"), page.get_by_label("Head")
  assert layer.locator("option").all_inner_texts() == ["all", "0", "1"]
  assert head.locator("option").all_inner_texts() == ["all", "0", "1", "2"]
  layer.select_option("1")
  assert_shows(page, words[0], layers=[1])
  head.select_option("2")
  assert_shows(page, words[0], [1], [2])
  assert (
    set(lit(page, "gaze").values()) == {1.0} and len(lit(page, "gaze")) == 3
  )
  button(page, "fox").click()  # the choice stays
  assert_shows(page, words[2], [1], [2])
  layer.select_option("all")
  assert_shows(page, words[2], heads=[2])
  head.select_option("all")
  assert_shows(page, words[2])


def test_arrow_keys_move_between_words(image):
  page, words = image
  page.keyboard.press("Tab")
  said = lambda: page.evaluate("document.activeElement.textContent")
  assert said() == "a"
  for key, number in (
    ("ArrowRight", 1),
    ("ArrowRight", 2),
    ("ArrowLeft", 1),
    ("End", 3),
    ("ArrowRight", 3),  # there is no more
    ("Home", 0),
    ("ArrowLeft", 0),
  ):
    page.keyboard.press(key)
    assert said() == TEXTS[number]
    assert_shows(page, words[number])
  # One stop of the Tab key for all words, then the controls.
  ids = []
  for _ in range(4):
    page.keyboard.press("Tab")
    ids.append(page.evaluate("document.activeElement.id || 'summary'"))
  assert ids == ["play", "layer", "head", "summary"]


def test_a_screen_reader_is_told(image):
  page, words = image
  live = page.locator("#said")
  assert live.get_attribute("aria-live") == "polite"
  button(page, "fox").click()
  page.get_by_label("Layer").select_option("1")
  page.get_by_label("Head").select_option("0")
  read = np.flatnonzero(words[2].chosen[1, 0])
  assert len(read) == 3
  places = []
  for r in read:
    y, x = divmod(int(r), SIDE)
    name = [["top"], [], [], ["bottom"]][y] + [["left"], [], [], ["right"]][x]
    places.append(f"{r} ({' '.join(name) or 'middle'})")
  assert live.inner_text() == (
    f"“fox” read regions {places[0]}, {places[1]} and {places[2]} in layer 1,"
    " head 0: 3 of 16."
  )
  page.get_by_label("Head").select_option("all")
  share = words[2].chosen[1].mean(0)
  first = int(np.argsort(-share, kind="stable")[0])
  text = live.inner_text()
  assert f" {first} (" in text and "% of heads)" in text
  assert f"{(share > 0).sum()} of 16" in text and "layer 1, all heads" in text
  svg = page.locator("#gaze .picture svg")
  assert svg.get_attribute("role") == "img"
  assert f"region {first} " in svg.get_attribute("aria-label")
  # Lists, labels and headings have their roles and names.
  assert page.get_by_role("list", name="The answer").count() == 1
  names = page.get_by_role("heading", level=2).all_inner_texts()
  assert names == ["Gaze", "Dense", "Budget used"]
  assert page.locator("html").get_attribute("lang") == "en"


def test_figures_of_a_word(image):
  page, words = image
  page.get_by_text("Regions of this word").click()
  button(page, "red").click()
  page.get_by_label("Layer").select_option("0")
  page.get_by_label("Head").select_option("1")
  rows = page.locator("#figures tr")
  first = int(np.flatnonzero(words[1].chosen[0, 1])[0])
  cells = rows.first.locator("th, td").all_inner_texts()
  mass = words[1].dense[0, 1, first]
  score = words[1].scores[0, 1, first]
  assert (cells[0], cells[2]) == (str(first), "100\u00a0%")
  assert abs(float(cells[3].split("\u00a0")[0]) - 100 * mass) < 0.7
  assert abs(float(cells[4]) - score) < 0.02
  assert rows.count() == 12


def test_budget_and_accounting(image):
  page, _ = image
  values = page.locator("#budget dd").all_inner_texts()
  assert values == ["3 of 16", "21.5\u00a0%", "102.8\u00a0%"]
  rows = page.locator("#accounting tr").all_inner_texts()
  assert rows == ["visual tokens\t144", "decode step\t1.5 ms"]
  note = page.locator("#gaze .note").inner_text()
  assert note.startswith("A head read 3 of 16 regions")
  assert page.locator("#dense .note").inner_text().startswith("75\u00a0% of")


def test_playing_goes_from_word_to_word(opened):
  views, words = made(1)
  page = opened(render(views, words))
  page.clock.install()
  page.reload()
  play = page.get_by_role("button", name="Play")
  play.click()
  live = page.locator("#said")
  assert page.locator("#play").inner_text() == "Pause"
  # It would be read aloud faster than one can listen.
  assert live.get_attribute("aria-live") == "off"
  page.clock.run_for(1200)
  assert_shows(page, words[1])
  page.get_by_role("button", name="Pause").click()
  page.clock.run_for(5000)
  assert_shows(page, words[1])
  assert live.get_attribute("aria-live") == "polite"
  play.click()
  page.clock.run_for(10_000)  # to the end, where it stops
  assert_shows(page, words[3])
  assert page.locator("#play").inner_text() == "Play"
  play.click()  # from the beginning
  assert_shows(page, words[0])
  button(page, "red").click()  # a click on a word stops it
  page.clock.run_for(5000)
  assert_shows(page, words[1])


@pytest.mark.parametrize("reduced", ["reduce", "no-preference"])
def test_reduced_motion(opened, reduced):
  page = opened(render(*made(1)), reduced_motion=reduced)
  page.wait_for_selector("#stage:not([hidden])")
  seconds = page.locator("#gaze rect").first.evaluate(
    "r => getComputedStyle(r).transitionDuration"
  )
  assert (float(seconds.split("s")[0]) == 0) == (reduced == "reduce")


def test_several_frames(opened):
  views, words = made(8, budget=2)
  page = opened(render(views, words))
  page.wait_for_selector("#stage:not([hidden])")
  thumbs = page.locator("#strip").get_by_role("button")
  assert thumbs.count() == 8
  follow = page.get_by_label("Follow the gaze")
  for number, word in enumerate(words):
    button(page, TEXTS[number]).click()
    read = word.chosen.mean((0, 1)).reshape(8, -1)
    frame = int(read.sum(1).argmax())
    assert pressed(thumbs) == [frame]
    shown = {int(r) for r in drawn(page, "gaze")}
    assert shown == set(range(16 * frame, 16 * frame + 16))
    wanted = {str(16 * frame + r) for r in np.flatnonzero(read[frame])}
    assert lit(page, "gaze").keys() == wanted
    part = read.sum(1)[frame] / read.sum()
    assert f"frame {frame + 1}: {100 * part:.0f}" in (
      thumbs.nth(frame).get_attribute("aria-label")
    )
    assert "(frame " in page.locator("#said").inner_text()
  # A frame picked by hand stays, until the gaze is followed again.
  other = (frame + 3) % 8
  thumbs.nth(other).click()
  assert pressed(thumbs) == [other] and not follow.is_checked()
  button(page, "a").click()
  assert pressed(thumbs) == [other]
  read = words[0].chosen.mean((0, 1)).reshape(8, -1)
  wanted = {str(16 * other + r) for r in np.flatnonzero(read[other])}
  assert lit(page, "gaze").keys() == wanted
  thumbs.nth(other).focus()
  page.keyboard.press("Home")
  assert pressed(thumbs) == [0]
  page.keyboard.press("ArrowRight")
  assert pressed(thumbs) == [1]
  follow.check()
  assert pressed(thumbs) == [int(read.sum(1).argmax())]


def pressed(buttons):
  states = buttons.evaluate_all("all => all.map(b => b.ariaPressed)")
  return [i for i, state in enumerate(states) if state == "true"]


def test_the_frame_read_most_is_in_sight(opened):
  """Of 40 frames in a narrow strip, wherever it is."""
  views, words = made(40, budget=1)
  page = opened(render(views, words), width=360, reduced_motion="reduce")
  page.wait_for_selector("#stage:not([hidden])")
  strip = page.locator("#strip").bounding_box()
  for text in TEXTS:
    button(page, text).click()
    current = page.locator("#strip [aria-pressed=true]").bounding_box()
    assert current["x"] >= strip["x"] - 1
    assert current["x"] + current["width"] <= strip["x"] + strip["width"] + 1
  assert page.evaluate("scrollX") == 0


# Contrast of each piece of text with what lies behind it (WCAG 2, AA), for
# every element that has text of its own.
CONTRAST = """() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => {
    const [r, g, b] = c.map((v) => v / 255).map(
      (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const out = [];
  for (const node of document.querySelectorAll("main *")) {
    const own = [...node.childNodes].some(
      (c) => c.nodeType === 3 && c.textContent.trim());
    if (!own || !node.checkVisibility()) continue;
    if (node.closest("svg, option")) continue;
    let behind = node;
    while (behind && (parse(getComputedStyle(behind).backgroundColor)[3] ?? 1)
        === 0) behind = behind.parentElement;
    const back = light(parse(
      getComputedStyle(behind ?? document.body).backgroundColor));
    const front = light(parse(getComputedStyle(node).color));
    const [low, high] = [back, front].sort((a, b) => a - b);
    out.push([(high + 0.05) / (low + 0.05), node.tagName, node.textContent]);
  }
  return out;
}"""


@pytest.mark.few(1)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("frames", [1, 8])
def test_on_a_phone_in_light_and_dark(opened, scheme, frames, tmp_path):
  views, words = made(frames)
  question = "What sleeps beside the mug, and a_word_" + 30 * "long"
  words = [*words, words_lib.Word(40 * "longer", *fields(words[0]))]
  page = opened(
    render(views, words, question=question), width=360, color_scheme=scheme
  )
  page.wait_for_selector("#stage:not([hidden])")
  page.get_by_text("Regions of this word").click()
  for width in (320, 360):
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
  both = [page.locator(f"#{p} .picture").bounding_box() for p in PANELS]
  assert both[0]["y"] == both[1]["y"]  # side by side
  assert both[0]["width"] == both[1]["width"] > 150
  background = page.evaluate("getComputedStyle(document.body).backgroundColor")
  bright = sum(map(int, background[4:-1].split(","))) / 3
  assert bright > 240 if scheme == "light" else bright < 30
  contrast = page.evaluate(CONTRAST)
  assert len(contrast) > 30
  assert [c for c in contrast if c[0] < 4.5] == []
  # Fingers: what is tapped is 24 px or more (WCAG 2.5.8).
  for box in page.locator("main button:visible, main select").all():
    size = box.bounding_box()
    assert min(size["width"], size["height"]) >= 24
  page.screenshot(path=tmp_path / "phone.png", full_page=True)


PANELS = ("gaze", "dense")


def fields(word):
  return word.share, word.chosen, word.scores, word.dense


def test_no_text_becomes_markup_and_no_request_leaves(browser, tmp_path):
  hits = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      hits.append(self.path)
      self.send_response(204)
      self.end_headers()

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  address = f"http://127.0.0.1:{server.server_port}/"
  bad = (
    f"</script><script>window.hit = 1</script><img src={address}a"
    f" onerror='window.hit = 2'><!-- <script>"
  )
  views, words = made(1)
  words[0] = words_lib.Word(bad, *fields(words[0]))
  file = tmp_path / "bad.html"
  file.write_text(
    render(views, words, question=bad, answer=bad, accounting={bad: bad})
  )
  page = browser.new_page()
  try:
    page.goto(file.as_uri())
    page.wait_for_selector("#stage:not([hidden])")
    assert page.locator("#words button").first.inner_text() == bad
    assert page.title() == bad
    assert page.evaluate("window.hit") is None
    # What ran in the page all the same could not get out: the policy.
    out = page.evaluate(
      "a => fetch(a + 'b', {mode: 'no-cors'}).then(() => 1, () => 0)", address
    )
    page.evaluate(
      "a => new Promise(done => { const i = new Image();"
      " i.onload = i.onerror = done; i.src = a + 'c'; })",
      address,
    )
    assert out == 0 and hits == []
  finally:
    page.close()
    server.shutdown()
    server.server_close()


def test_what_has_no_region_is_dark(opened):
  views, words = made(1)
  regions = views[0].regions.copy()
  regions[:3] = -1  # a quarter of the picture
  page = opened(render([words_lib.View(views[0].picture, regions)], words))
  page.wait_for_selector("#stage:not([hidden])")
  assert {int(r) for r in drawn(page, "gaze")} == set(range(4, 16))
  bare = page.locator("#gaze svg > rect")
  whole = page.locator("#gaze .picture").bounding_box()
  areas = [b.bounding_box() for b in bare.all()]
  area = sum(b["width"] * b["height"] for b in areas)
  assert abs(area / (whole["width"] * whole["height"]) - 0.25) < 0.01
  opacity = {float(b.get_attribute("fill-opacity")) for b in bare.all()}
  assert opacity == {0.62}
  assert page.locator("#dense svg > rect").count() == 0


def test_a_budget_of_nothing(opened):
  views, words = made(2, budget=0)
  page = opened(render(views, words))
  page.wait_for_selector("#stage:not([hidden])")
  button(page, "fox").click()
  said = page.locator("#said").inner_text()
  assert said == "“fox” read no region in all layers, all heads."
  assert lit(page, "gaze") == {} and lit(page, "dense")
  assert {tuple(v) for v in drawn(page, "gaze").values()} == {(0.62, 0)}


def test_what_is_missing_is_said(opened):
  views, words = made(1)
  bare = [words_lib.Word(w.text, w.share, w.chosen) for w in words]
  page = opened(render(views, bare))
  page.wait_for_selector("#stage:not([hidden])")
  note = page.locator("#dense .note").inner_text()
  assert note == "Dense attention was not recorded."
  assert lit(page, "dense") == {} and lit(page, "gaze")
  nothing = opened(render(views, []))
  assert nothing.get_by_role("alert").inner_text() == "The model said nothing."
  unseen = [words_lib.Word("hello", np.zeros(0), np.zeros((1, 2, 0)))]
  page = opened(render([], unseen))
  assert "no image" in page.get_by_role("alert").inner_text()
  assert page.locator("#budget dd").first.inner_text() == "3 of 0"
  # Without JavaScript question and answer are there to be read.
  page = opened(render(views, words), script=False)
  answer = page.locator("noscript p").first
  assert answer.is_visible() and answer.inner_text() == "a red fox sleeps"


LIMIT = "To keep this page small it holds means over heads of "


@pytest.mark.few(1)
@pytest.mark.parametrize(
  "deflated, head, layer, says",
  [
    (10**6, True, True, None),
    (300, True, True, LIMIT + "dense attention and scores."),
    # Deflated, the arrays have 78, 384 and 396 bytes, and 57 the first of
    # them averaged over heads.
    (
      40,
      False,
      False,
      LIMIT + "regions read, dense attention and scores, of some over layers"
      " too.",
    ),
  ],
)
def test_of_arrays_that_were_averaged_it_is_said(
  opened, monkeypatch, deflated, head, layer, says
):
  monkeypatch.setattr(viewer, "_DEFLATED", deflated)
  views, words = made(1)
  page = opened(render(views, words))
  page.wait_for_selector("#stage:not([hidden])")
  assert page.get_by_label("Head").is_enabled() == head
  assert page.get_by_label("Layer").is_enabled() == layer
  limit = page.locator("#limit")
  assert (limit.inner_text() if limit.is_visible() else None) == says
  assert_shows(page, words[0])
  if head and says:  # gaze of one head beside the mean of dense attention
    page.get_by_label("Head").select_option("1")
    assert lit(page, "gaze").keys() == (
      expected(words[0].chosen[:, 1].mean(0)).keys()
    )
    seen, wanted = lit(page, "dense"), expected(words[0].dense.mean((0, 1)))
    assert all(abs(seen.get(r, 0) - v) < 6e-3 for r, v in wanted.items())


@pytest.mark.nightly
def test_a_picture_for_the_docs(browser, tmp_path):
  wanted = os.environ.get("GAZE_WRITE_DOCS", "")
  target = (DOCS if wanted else tmp_path) / "viewer.png"
  source = tmp_path / "gaze.html"
  if wanted.endswith(".html"):
    source = pathlib.Path(wanted).resolve()
  else:
    source.write_text(render(*made(1)), encoding="utf-8")
  page = browser.new_page(viewport={"width": 1000, "height": 800})
  try:
    page.goto(source.as_uri())
    page.wait_for_selector("#stage:not([hidden])")
    page.wait_for_timeout(400)  # transitions
    page.screenshot(path=target, full_page=True)
  finally:
    page.close()
  with Image.open(target) as image:
    assert image.width == 1000 and len(image.getcolors(2**20) or []) > 100
