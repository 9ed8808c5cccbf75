"""The text of an answer as it comes: stop strings, ends, what is sure."""

import itertools

import pytest

from gaze_jax.api import answer
from gaze_jax.data import tokenizer as tokenizer_lib

TOKENIZER = tokenizer_lib.Tokenizer.load()
SAID = "né 🙂🙂 漢字 a fox, a fix \ufffd"
IDS = TOKENIZER.encode(SAID)


def stream(ids, stop=()):
  """The pieces that are told, as `Stream` tells them, and the text."""
  text, told, pieces = answer.Text(TOKENIZER, stop), 0, []
  for n in range(1, len(ids) + 1):
    text.read(ids[:n])
    over = text.stopped or n == len(ids)
    sure = text.text if over else text.sure
    if len(sure) > told:
      pieces.append(sure[told:])
      told = len(sure)
    if over:
      break
  return pieces, text


def test_pieces_joined_are_the_text_wherever_it_is_cut():
  for n in range(1, len(IDS) + 1):
    pieces, text = stream(IDS[:n])
    assert "".join(pieces) == text.text == TOKENIZER.decode(IDS[:n])
    assert text.count == n and not text.stopped
    assert "\ufffd" not in "".join(pieces[:-2])
  assert text.text == SAID


STOPS = [
  SAID[a:b]
  for a, b in itertools.combinations(range(len(SAID) + 1), 2)
  if b - a <= 5
]


def test_a_stop_string_is_never_told_wherever_tokens_end():
  for stop in STOPS:
    pieces, text = stream(IDS, (stop,))
    assert text.stopped, stop
    assert "".join(pieces) == text.text == SAID[: SAID.index(stop)]
    # No token more than it takes.
    assert stop in TOKENIZER.decode(IDS[: text.count])
    before = TOKENIZER.decode(IDS[: text.count - 1])
    assert stop not in before.rstrip("\ufffd")


def test_the_first_of_several_stop_strings_cuts():
  _, text = stream(IDS, ("a fix", "fox, a", "never"))
  assert text.text == SAID[: SAID.index("fox, a")]


def test_the_beginning_of_a_stop_string_is_told_once_it_is_none():
  pieces, text = stream(IDS, ("a fog", "fixed", "\ufffd\ufffd"))
  assert "".join(pieces) == text.text == SAID and not text.stopped


@pytest.mark.parametrize("stop", [(), ("fox",)])
def test_an_end_shows_nothing(stop):
  ids = [*TOKENIZER.encode("a fo"), TOKENIZER.eos]
  pieces, text = stream(ids, stop)
  assert "".join(pieces) == text.text == "a fo"
  assert text.count == len(ids) and not text.stopped
