"""Words and the regions they read."""

import numpy as np
import pytest

from gaze_jax import errors
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.decode import engine
from gaze_jax.view import words as words_lib


def step(token, *regions):
  """One layer, two heads, three regions; `regions` of each head."""
  chosen = np.zeros((1, 2, 3), bool)
  for head, picked in enumerate(regions):
    chosen[0, head, list(picked)] = True
  return engine.Step(token, chosen)


TEXTS = {1: "red", 2: " fo", 3: "x", 4: None, 5: " ", 6: "ed"}


def words(steps, **which):
  return words_lib.words(steps, [TEXTS[s.token] for s in steps], **which)


def test_words_by_hand():
  steps = [
    step(1, [0], [0]),
    step(2, [0], [1]),
    step(3, [1], [1]),
    step(4, [2], [2]),  # the stop token
  ]
  red, fox = words(steps)
  assert (red.text, fox.text) == ("red", "fox")
  assert red.share.tolist() == [1.0, 0.0, 0.0]
  assert fox.share.tolist() == [0.25, 0.75, 0.0]


def test_a_space_on_its_own_parts_words():
  said = words([step(1), step(5), step(6)])
  assert [w.text for w in said] == ["red", "ed"]


def test_layers_and_heads_can_be_picked():
  chosen = np.zeros((2, 2, 3), bool)
  chosen[0, 0, 0] = chosen[1, 1, 2] = True
  steps = [engine.Step(1, chosen)]
  share = lambda **k: words(steps, **k)[0].share.tolist()
  assert share() == [0.25, 0, 0.25]
  assert share(layers=[0]) == [0.5, 0, 0]
  assert share(layers=[1], heads=[1]) == [0, 0, 1]
  assert share(heads=[0]) == [0.5, 0, 0]


@pytest.mark.parametrize(
  "picked, says",
  [
    (dict(layers=[1]), "no layer 1: the model has layers 0 to 0"),
    (dict(heads=[0, 2, -1]), "no head 2, -1: the model has heads 0 to 1"),
    (dict(heads=[]), "none named"),
  ],
)
def test_what_the_model_lacks(picked, says):
  with pytest.raises(errors.GazeError, match=says.replace("(", r"\(")):
    words([step(1)], **picked)


def test_nothing_was_said():
  assert words([]) == []
  assert words([step(4)]) == []


def test_a_character_of_several_tokens():
  tokenizer = tokenizer_lib.Tokenizer.load()
  ids = tokenizer.encode("café 🦊")
  steps = [step(i, [n % 3], [n % 3]) for n, i in enumerate(ids)]
  said = words_lib.words(steps, tokenizer.pieces(ids))
  assert [w.text for w in said] == ["café", "🦊"]
  for word in said:
    np.testing.assert_allclose(word.share.sum(), 1.0, rtol=1e-6)


def test_what_shows_nothing_looks_for_no_word():
  steps = [step(1, [0], [0]), step(4, [2], [2]), step(3, [1], [1])]
  (one,) = words(steps)
  assert one.text == "redx" and one.share.tolist() == [0.5, 0.5, 0]
  # The tokens within a character count where it comes.
  parts = [step(7, [0], [0]), step(8, [1], [1]), step(2, [2], [2])]
  fox, said = words_lib.words(parts, ["", "\U0001f98a", " a"])
  assert (fox.text, said.text) == ("\U0001f98a", "a")
  assert fox.share.tolist() == [0.5, 0.5, 0]


def test_a_words_arrays_are_means_over_its_tokens():
  fo = engine.Step(
    2,
    np.array([[[True, False, False]], [[False, True, False]]]),
    np.array([[[1.0, 2.0, -np.inf]], [[4.0, -np.inf, -np.inf]]]),
    np.array([[[0.5, 0.25, 0.0]], [[0.0, 0.5, 0.0]]]),
  )
  x = engine.Step(
    3,
    np.array([[[True, False, False]], [[True, False, False]]]),
    np.array([[[3.0, 4.0, -np.inf]], [[6.0, 5.0, -np.inf]]]),
    np.array([[[0.25, 0.25, 0.0]], [[0.5, 0.0, 0.0]]]),
  )
  # `share` follows the layers that were asked for; the arrays hold all.
  (fox,) = words([fo, x], layers=[1])
  assert fox.text == "fox" and fox.share.tolist() == [0.5, 0.5, 0]
  assert fox.chosen.tolist() == [[[1, 0, 0]], [[0.5, 0.5, 0]]]
  # A score that one token lacks is the other's alone.
  inf = np.inf
  assert fox.scores.tolist() == [[[2, 3, -inf]], [[5, 5, -inf]]]
  assert fox.dense.tolist() == [[[0.375, 0.25, 0]], [[0.25, 0.25, 0]]]
  assert {a.dtype.name for a in (fox.chosen, fox.scores, fox.dense)} == {
    "float32"
  }


def test_what_a_token_did_not_record_its_word_has_not():
  full = engine.Step(2, *np.ones((3, 1, 2, 3)))
  bare = engine.Step(3, np.ones((1, 2, 3), bool))
  (fox,) = words([full, bare])
  assert fox.scores is None and fox.dense is None
  assert fox.chosen.tolist() == np.ones((1, 2, 3)).tolist()
