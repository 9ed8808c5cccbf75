"""The shipped tokenizer: exact round trips, whole words, safe specials."""

import pickle

import pytest
from hypothesis import example
from hypothesis import given
from hypothesis import strategies as st

from gaze_jax.data import emoji
from gaze_jax.data import questions
from gaze_jax.data import samples
from gaze_jax.data import scenes
from gaze_jax.data import tokenizer as tokenizer_lib

TOKENIZER = tokenizer_lib.Tokenizer.load()


@given(st.text())
@example("")
@example(" ")
@example("  two  spaces ")
@example("<eos><image> \U0001f98a é\n\t\0")
def test_any_text_round_trips(text):
  ids = TOKENIZER.encode(text)
  assert TOKENIZER.decode(ids) == text
  assert TOKENIZER.decode([*ids, TOKENIZER.eos, 77]) == text
  assert not set(ids) & set(range(len(tokenizer_lib.SPECIAL)))


def test_special_tokens_have_the_first_ids():
  t = TOKENIZER
  ids = [t.pad, t.bos, t.eos, t.user, t.assistant, t.image]
  assert ids == [0, 1, 2, 3, 4, 5] and t.size == 2048


@pytest.mark.parametrize(
  "word",
  [e.name for e in emoji.NAMED]
  + [e.plural for e in emoji.NAMED]
  + sorted({e.colour for e in emoji.NAMED})
  + [*questions.COUNT_WORDS, "nothing"]
  + [p for p in scenes.PLACES if " " not in p],
)
def test_a_word_is_one_token_wherever_it_stands(word):
  (token,) = TOKENIZER.encode(word)
  assert token in TOKENIZER.encode(f"where is the {word}?")
  assert token in TOKENIZER.encode(f"{word} again")


def test_places_of_two_words_are_two_tokens():
  assert TOKENIZER.encode("top left") == [
    *TOKENIZER.encode("top"),
    *TOKENIZER.encode("left"),
  ]


def test_decode_leaves_special_tokens_out():
  ids = [TOKENIZER.user, *TOKENIZER.encode("a fox"), TOKENIZER.assistant]
  assert TOKENIZER.decode(ids) == "a fox"


def test_pickles():
  again = pickle.loads(pickle.dumps(TOKENIZER))
  assert again.encode("<bos> a fox") == TOKENIZER.encode("<bos> a fox")


def test_a_missing_broken_or_foreign_file_is_one_clear_error(tmp_path):
  with pytest.raises(samples.DataError, match="can't read the tokenizer"):
    tokenizer_lib.Tokenizer.load(str(tmp_path / "none.json"))
  broken = tmp_path / "broken.json"
  broken.write_text("{")
  with pytest.raises(samples.DataError, match="not a tokenizer.json"):
    tokenizer_lib.Tokenizer.load(str(broken))
  foreign = tmp_path / "foreign.json"
  text = tokenizer_lib.SHIPPED.read_text()
  foreign.write_text(text.replace("<assistant>", "<other>"))
  with pytest.raises(samples.DataError, match="lacks.*<assistant>"):
    tokenizer_lib.Tokenizer.load(str(foreign))


def test_what_is_shipped_is_what_the_command_trains():
  trained = tokenizer_lib.train(tokenizer_lib.training_text())
  assert trained.to_str() == tokenizer_lib.SHIPPED.read_text()
  assert tokenizer_lib.SHIPPED.stat().st_size <= 130_000
