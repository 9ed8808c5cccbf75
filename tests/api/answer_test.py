"""The text of an answer as it comes: stop strings, ends, what is sure."""

import itertools

import pytest
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import normalizers

from gaze_jax.api import answer
from gaze_jax.data import tokenizer as tokenizer_lib

TOKENIZER = tokenizer_lib.Tokenizer.load()
SAID = "né 🙂🙂 漢字 a fox, a fix \ufffd"
IDS = TOKENIZER.encode(SAID)


def stream(ids, stop=(), tokenizer=TOKENIZER):
  """The pieces that are told, as `Stream` tells them, and the text."""
  text, told, pieces = answer.AnswerText(tokenizer, stop), 0, []
  for n in range(1, len(ids) + 1):
    text.read(ids[:n])
    over = text.stopped or n == len(ids)
    sure = text.text if over else text.certain
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


def test_bytes_of_their_own_tokens_are_told_as_characters():
  vocabulary = {f"<0x{b:02X}>": b for b in range(256)} | {"a": 256, "▁": 257}
  vocabulary |= {"<unk>": 258}
  raw = tokenizers.Tokenizer(
    models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>")
  )
  raw.normalizer = normalizers.Replace(" ", "▁")
  raw.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  )
  raw.add_special_tokens([tokenizer_lib.TURN, tokenizer_lib.END])
  tokenizer = tokenizer_lib.Tokenizer(raw)
  ids = tokenizer.encode(SAID)
  whole = 0
  for n in range(1, len(ids) + 1):
    pieces, text = stream(ids[:n], tokenizer=tokenizer)
    said = "".join(pieces)
    assert said == text.text == tokenizer.decode(ids[:n])
    # Cut anywhere, it loses no character but the one that was begun.
    whole += len(tokenizer.encode(SAID[: whole + 1])) <= n
    assert said[:whole] == SAID[:whole] and len(said) <= whole + 1
  assert said == SAID


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
