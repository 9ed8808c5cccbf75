"""Every answer against what the scene shows, and how far guessing gets."""

import collections
import re

import pytest

from gaze_jax.demo import emoji
from gaze_jax.demo import emoji_scenes
from gaze_jax.demo import questions
from gaze_jax.demo import scenes

PLURALS = {e.plural: e.name for e in emoji.NAMED}
COLOURS = {e.name: e.colour for e in emoji.NAMED}
GRID = [
  ["top left", "top", "top right"],
  ["left", "center", "right"],
  ["bottom left", "bottom", "bottom right"],
]


def source(split="train", length=3000, **changes):
  return emoji_scenes.EmojiScenes(split, size=168, length=length, **changes)


def at(scene):
  """{(row, column): name}, from pixels: the cell that the middle lies in."""
  out = {}
  for p in scene.placed:
    name = emoji.NAMED[p.thing].name if p.thing >= 0 else "?"
    middle = p.x + p.size / 2, p.y + p.size / 2
    out[int(middle[1] // 56), int(middle[0] // 56)] = name
  return out


def answer(text, grid):
  """The answer as one would find it by looking; asserts that it is unique."""
  place = {GRID[r][c]: name for (r, c), name in grid.items()}
  names = list(grid.values())
  if m := re.fullmatch(r"what is at the (.*)\?", text):
    return place[m[1]]
  if m := re.fullmatch(r"what colour is at the (.*)\?", text):
    return COLOURS[place[m[1]]]
  if m := re.fullmatch(r"how many (.*) are there\?", text):
    return ["zero", "one", "two", "three"][names.count(PLURALS[m[1]])]
  if m := re.fullmatch(r"where is the (.*)\?", text):
    assert names.count(m[1]) == 1
    return next(p for p, name in place.items() if name == m[1])
  m = re.fullmatch(r"what is (left|right) of the (.*)\?", text)
  assert names.count(m[2]) == 1
  (row, column), step = (
    next(k for k, name in grid.items() if name == m[2]),
    -1 if m[1] == "left" else 1,
  )
  beyond = [grid.get((row, column + step * n)) for n in (1, 2)]
  if beyond == [None, None]:
    return "nothing"
  assert beyond[0] not in (None, "?")
  return beyond[0]


@pytest.mark.parametrize("split", scenes.SPLITS)
def test_every_answer_is_what_the_scene_shows(split):
  s = source(split)
  for i in range(300):
    scene = s.scene(i)
    asked = s.text(i).questions
    assert len(asked) == 8
    assert len({q.text for q in asked}) == 8
    for q in asked:
      assert q.answer == answer(q.text, at(scene)), q


def test_a_question_is_about_the_thing_that_answers_it():
  s = source()
  for i in range(100):
    sample = s.sample(i)
    for q in sample.questions:
      about = [sample.things[k] for k in q.about]
      if q.kind == "what" or (q.kind.endswith("_of") and q.answer != "nothing"):
        assert [t.name for t in about] == [q.answer]
      if q.kind == "where":
        assert [t.place for t in about] == [q.answer]
      if q.kind == "count":
        assert questions.COUNT_WORDS[len(about)] == q.answer


def test_an_epoch_asks_anew_about_the_same_canvas():
  s = source()
  one, two = s.sample(7, 0), s.sample(7, 1)
  assert (one.images[0] == two.images[0]).all()
  assert one.questions != two.questions
  assert s.sample(7, 1).questions == two.questions == s.text(7, 1).questions


def test_held_out_split_asks_about_held_out_pairs():
  s = source("held_out_pairs")
  for i in range(100):
    things = s.scene(i).things
    for q in s.text(i).questions:
      if q.kind in ("what", "where", "colour"):
        (k,) = q.about
        assert scenes.HELD_OUT[things[k].thing] == things[k].cell


@pytest.mark.few(1)
@pytest.mark.parametrize("split", ["train", "new", "held_out_pairs"])
def test_guessing_the_most_frequent_answer_gets_nowhere(split):
  s = source(split)
  answers = collections.defaultdict(collections.Counter)
  for i in range(1500):
    for q in s.text(i).questions:
      answers[q.kind][q.answer] += 1
  total = sum(c.total() for c in answers.values())
  best = {k: c.most_common(1)[0][1] / c.total() for k, c in answers.items()}
  assert best["what"] < 0.1 and best["where"] < 0.2 and best["colour"] < 0.2
  assert best["count"] < 0.45
  assert best["left_of"] < 0.45 and best["right_of"] < 0.45
  share = {k: c.total() / total for k, c in answers.items()}
  assert share["what"] > 0.25 and share["where"] > 0.2
  assert min(share.values()) > 0.03


def test_single_things_are_asked_about_too():
  s = source(curriculum=1.0)
  for i in range(50):
    kinds = {q.kind for q in s.text(i).questions}
    assert {"what", "where", "colour"} <= kinds


def test_wordings_hold_everything_that_is_asked():
  words = questions.wordings()
  s = source()
  for i in range(200):
    for q in s.text(i).questions:
      assert q.text in words[q.kind][0] and q.answer in words[q.kind][1]


def test_a_caption_names_things_and_places_in_reading_order():
  plain = source(length=100)
  for i in range(100):
    scene = plain.scene(i)
    asked = questions.caption(scene)
    place = {GRID[r][c]: n for (r, c), n in at(scene).items() if n != "?"}
    said = dict(p.split(" at the ")[::-1] for p in asked.answer.split(", "))
    assert said == place and asked.kind == "caption"
    order = [sum(GRID, []).index(p) for p in said]
    assert order == sorted(order)
    names = [emoji.NAMED[scene.things[k].thing].name for k in asked.about]
    assert names == list(said.values())


def test_captions_take_the_place_of_one_question():
  plain, with_captions = source(length=20), source(length=20, captions=True)
  for i in range(20):
    first, *rest = with_captions.text(i, 3).questions
    assert first == questions.caption(plain.scene(i))
    assert len(rest) == 7 and all(q.kind != "caption" for q in rest)


def test_no_caption_is_longer_than_the_longest():
  s = source(length=2000)
  longest = max(len(text) for text in questions.longest_captions())
  assert (
    max(len(questions.caption(s.scene(i)).answer) for i in range(2000))
    <= longest
  )
