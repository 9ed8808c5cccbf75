"""Which ids end an answer, by the files beside a tokenizer."""

import codecs
import json
import pickle

import pytest

from gaze_jax.data import samples
from gaze_jax.data import stop_tokens
from gaze_jax.data import tokenizer as tokenizer_lib

GENERATION, CONFIG = "generation_config.json", "config.json"


@pytest.mark.parametrize(
  "files, want",
  [
    ({}, ()),
    ({GENERATION: dict(eos_token_id=7)}, (7,)),
    ({GENERATION: dict(eos_token_id=[7, 5, 7])}, (7, 5)),
    ({GENERATION: dict(eos_token_id=None), CONFIG: {}}, ()),
    ({GENERATION: {}, CONFIG: dict(eos_token_id=[5])}, (5,)),
    # Both of them end an answer, and what a whole model's text says.
    ({GENERATION: dict(eos_token_id=7), CONFIG: dict(eos_token_id=5)}, (7, 5)),
    ({CONFIG: dict(text_config=dict(eos_token_id=[4, 5]))}, (4, 5)),
    (
      {CONFIG: dict(eos_token_id=6, text_config=dict(eos_token_id=5))},
      (6, 5),
    ),
    ({CONFIG: dict(eos_token_id=-1, text_config=None)}, ()),
  ],
)
def test_ids_of_both_files_end_an_answer(tmp_path, files, want):
  for name, value in files.items():
    (tmp_path / name).write_text(json.dumps(value))
  assert stop_tokens.beside(tmp_path / "tokenizer.json") == want


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
  text = codecs.BOM_UTF8 + b'{"eos_token_id": 7}'
  (tmp_path / GENERATION).write_bytes(text)
  assert stop_tokens.beside(tmp_path / "tokenizer.json") == (7,)


@pytest.mark.parametrize(
  "text, message",
  [
    ("{", "is not JSON"),
    ("[" * 200_000, "nested too deep"),
    ("[]", "an object is needed"),
    ('{"eos_token_id": "</s>"}', "eos_token_id = '</s>' must be the id"),
    ('{"eos_token_id": [2, true]}', r"eos_token_id = \[2, True\] must be"),
    ('{"eos_token_id": 2.0}', "eos_token_id = 2.0 must be"),
  ],
)
def test_a_broken_file_is_named(tmp_path, text, message):
  (tmp_path / GENERATION).write_text(text)
  with pytest.raises(samples.DataError, match=message) as caught:
    stop_tokens.beside(tmp_path / "tokenizer.json")
  assert GENERATION in str(caught.value)


def test_a_tokenizer_has_the_ends_of_its_folder(tmp_path):
  file = tmp_path / "tokenizer.json"
  file.write_bytes(tokenizer_lib.SHIPPED.read_bytes())
  (tmp_path / GENERATION).write_text('{"eos_token_id": [9, 2]}')
  t = tokenizer_lib.Tokenizer.load(str(file))
  assert (t.eos, t.ends) == (2, (2, 9))
  assert pickle.loads(pickle.dumps(t)).ends == (2, 9)
  assert tokenizer_lib.Tokenizer.load().ends == (2,)
  # What comes after any of them is no part of the text.
  said = t.encode("a fox")
  for end in t.ends:
    assert t.decode([*said, end, *said]) == "a fox"
