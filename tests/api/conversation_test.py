"""How a question is put: its marks, and the ids of each turn."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from gaze_jax import api
from gaze_jax import types
from gaze_jax.api import conversation
from gaze_jax.api import request as request_lib
from gaze_jax.data import llava
from gaze_jax.data import messages
from gaze_jax.data import pipeline
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.decode import context as context_lib
from gaze_jax.demo import packages
from gaze_jax.demo import smollm2 as smollm2_lib

Q = "what is it?"


def shade(number):
  return np.full((70, 70, 3), number, np.uint8)


def read(turn):
  """Ids of text, and the shade of each unit as a string, in reading order."""
  (context, batch), out, shown = turn, [], set()
  layout = batch.layout
  views = context.views[-1 - layout.unit.max() :]  # the newest
  slots = zip(layout.role[0], layout.unit[0], batch.tokens[0], strict=True)
  for role, unit, token in slots:
    if role == types.Role.TEXT:
      out.append(int(token))
    elif role != types.Role.PAD and unit not in shown:
      shown.add(unit)
      out.append(str(views[unit].picture[0, 0, 0]))
  return out


@dataclasses.dataclass
class Format:
  """A chat format: its tokenizer, and ids of texts with special tokens."""

  tokenizer: tokenizer_lib.Tokenizer
  model: api.Model

  def prepare(self, question=Q, after=None, **given):
    request = api.Request(question, after, **given)
    return read(
      conversation.next_turn(request, self.model.config, self.tokenizer)
    )

  def seen(self):
    """A context of two images that were read before any question."""
    shown = (messages.Part(messages.IMAGE),) * 2
    talk = (messages.Message(messages.USER, shown),)
    flat = self.tokenizer.chat.before_question(talk)
    last = max(i for i, x in enumerate(flat) if isinstance(x, messages.Place))
    items = flat[: last + 1]
    ids = [x if isinstance(x, int) else context_lib.UNIT for x in items]
    return self._context(talk, ids, sizes=(9,) * 4, units=(2, 2))

  def said(self, text, *, ended=False, talk=(), ids=None):
    """A context in which a question was answered by a text.

    Args:
      text: of the answer; its last token is not read yet.
      ended: whether the model ended it.
      talk: what came before the question.
      ids: what was read, where the answer is not what its text makes.
    """
    talk = (*talk, messages.question(Q))
    if ids is None:
      ids = [*self.tokenizer.chat.ask(talk), *self.tokenizer.encode(text)]
      ids += [self.tokenizer.eos] * ended
    talk = (*talk, messages.plain(messages.ASSISTANT, text))
    cut = len(ids) - bool(text or ended)
    return self._context(talk, ids[:cut], pending=tuple(ids[cut:]))

  def _context(self, talk, ids, **more):
    empty = context_lib.empty(self.model.config.model)
    many = dict(length=len(ids), position=len(ids))
    return dataclasses.replace(empty, talk=talk, ids=tuple(ids), **many, **more)


@pytest.fixture(scope="module")
def ours(model):
  return Format(model().tokenizer, model())


@pytest.fixture(scope="module")
def smollm2(model):
  tokenizer = tokenizer_lib.Tokenizer.load(packages.SMOLLM2)
  return Format(tokenizer, model())


@pytest.fixture(scope="module")
def chatml():
  """Ids of a text as it stands, special tokens and all."""
  plain, _ = smollm2_lib.read_tokenizer(packages.find(packages.SMOLLM2))
  return lambda text: plain.encode(text).ids


# Our format: 1 <bos>, 2 <eos>, 3 <user>, 4 <assistant>.
BOS, EOS, USER, ASSISTANT = 1, 2, 3, 4


def test_our_first_turn_by_hand(ours):
  text = ours.tokenizer.encode
  q = text(Q)
  assert ours.prepare() == [BOS, USER, *q, ASSISTANT]
  one = dict(images=[shade(7)])
  assert ours.prepare(**one) == [BOS, "7", USER, *q, ASSISTANT]
  # Written in front it is the same; elsewhere it stands where it is written.
  assert ours.prepare(f"<image>\n{Q}", **one) == ours.prepare(**one)
  assert ours.prepare("see <image> here", **one) == [
    *(BOS, USER, *text("see"), "7", *text("here"), ASSISTANT)
  ]
  assert ours.prepare("see <image>", **one) == [
    *(BOS, USER, *text("see"), "7", ASSISTANT)
  ]


def test_our_later_turns_by_hand(ours):
  q = ours.tokenizer.encode(Q)
  seen = ours.seen()
  assert ours.prepare(after=seen) == [USER, *q, ASSISTANT]
  stopped = ours.said("a fox", ended=True)
  assert ours.prepare(after=stopped) == [USER, *q, ASSISTANT]
  cut = ours.said("a fox")
  assert ours.prepare(after=cut) == [EOS, USER, *q, ASSISTANT]
  # So does one that said nothing.
  silent = ours.said("")
  assert ours.prepare(after=silent) == [EOS, USER, *q, ASSISTANT]
  more = dict(images=[shade(7)])
  assert ours.prepare(after=seen, **more) == ["7", USER, *q, ASSISTANT]
  assert ours.prepare(after=cut, **more) == [EOS, "7", USER, *q, ASSISTANT]
  text = ours.tokenizer.encode("and")
  assert ours.prepare("and <image>", seen, **more) == [
    *(USER, *text, "7", ASSISTANT)
  ]


def test_text_that_the_template_writes_otherwise_is_read_anew(ours):
  """What a model said in other tokens than its text makes, and a cut word."""
  text = ours.tokenizer.encode
  asked = ours.tokenizer.chat.ask((messages.question(Q),))
  letters = [token for letter in "fox" for token in text(letter)[-1:]]
  said = ours.said("fox", ids=[*asked, *letters])
  new = conversation.next_turn(
    api.Request("why?", said), ours.model.config, ours.tokenizer
  )
  want = [*text("fox"), EOS, USER, *text("why?"), ASSISTANT]
  assert read(new) == want
  before, _ = new
  assert before.ids == asked and before.pending == ()
  assert before.length == before.position == len(asked)
  whole = ours.tokenizer.chat.ask(before.talk)
  assert (*before.ids, *read(new)) == whole
  # It can't be read anew where an image stands behind it.
  late = dataclasses.replace(
    said, ids=(*said.ids, context_lib.UNIT), pending=()
  )
  with pytest.raises(
    request_lib.RequestError, match="before an image otherwise"
  ):
    ours.prepare("why?", late)


def test_a_context_without_a_conversation_is_no_beginning_of_one(ours):
  raw = dataclasses.replace(ours.said("fox"), talk=())
  with pytest.raises(
    request_lib.RequestError, match="a prompt and no conversation"
  ):
    ours.prepare("why?", raw)


SYSTEM = (
  "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by"
  " Hugging Face<|im_end|>\n"
)
END = f"{Q}<|im_end|>\n<|im_start|>assistant\n"


def test_the_first_turn_of_chatml_by_hand(smollm2, chatml):
  start = f"{SYSTEM}<|im_start|>user\n"
  assert smollm2.prepare() == chatml(start + END)
  one = dict(images=[shade(7)])
  want = [*chatml(start), "7", *chatml("\n" + END)]
  assert smollm2.prepare(**one) == want
  assert smollm2.prepare(f"<image>{Q}", **one) == want
  assert smollm2.prepare(f"<image>\n{Q}", **one) == want
  assert smollm2.prepare(f"see <image>{Q}", **one) == [
    *(*chatml(start + "see "), "7", *chatml(END))
  ]


def test_later_turns_of_chatml_by_hand(smollm2, chatml):
  end = smollm2.tokenizer.eos
  assert [end] == chatml("<|im_end|>")
  again = "\n<|im_start|>user\n"
  seen = smollm2.seen()
  # The image stands within the user's turn, which goes on.
  assert smollm2.prepare(after=seen) == chatml("\n" + END)
  stopped = smollm2.said("a fox", ended=True)
  assert smollm2.prepare(after=stopped) == chatml(again + END)
  cut = smollm2.said("a fox")
  assert smollm2.prepare(after=cut) == chatml("<|im_end|>" + again + END)
  # One that another of the model's ends ended: the template's own stands there.
  other = dataclasses.replace(stopped, pending=(0,))
  assert smollm2.prepare(after=other) == chatml("<|im_end|>" + again + END)
  more = dict(images=[shade(7)])
  assert smollm2.prepare(after=stopped, **more) == [
    *(*chatml(again), "7", *chatml("\n" + END))
  ]
  assert smollm2.prepare(after=seen, **more) == ["7", *chatml("\n" + END)]
  assert smollm2.prepare(f"see <image>{Q}", seen, **more) == [
    *(*chatml("\nsee "), "7", *chatml(END))
  ]


def test_images_read_before_begin_the_users_turn(ours, smollm2, chatml):
  for form, want in (
    (ours, [BOS, "7", "8", "9"]),
    (smollm2, [*chatml(f"{SYSTEM}<|im_start|>user\n"), "7", "8", "9"]),
  ):
    shown = api.Request("", images=[shade(7)], videos=[[shade(8), shade(9)]])
    seen = conversation.opening(shown, form.model.config, form.tokenizer)
    assert read(seen) == want


def test_marks_of_images_and_videos(ours):
  given = dict(
    images=[shade(1), shade(2)], videos=[[shade(3), shade(4)], [shade(5)]]
  )
  text = lambda word: ours.tokenizer.encode(word)
  whole = "<video> a <image> b <image> c <video>"
  assert ours.prepare(whole, **given) == [
    *(BOS, "3", "4", USER, *text("a"), "1", *text("b"), "2", *text("c")),
    *("5", ASSISTANT),
  ]
  # What is written nowhere comes first: images, then videos.
  assert ours.prepare(Q, **given) == [
    *(BOS, "1", "2", "3", "4", "5", USER, *text(Q), ASSISTANT)
  ]
  assert ours.prepare("a <image> b <image>", **given)[:5] == [
    *(BOS, "3", "4", "5", USER)
  ]
  for question, says in (
    ("<image> a", "names 1 <image>, and 2 are given"),
    ("<image><image><image>", "names 3 <image>, and 2 are given"),
    ("<video>", "names 1 <video>, and 2 are given"),
  ):
    with pytest.raises(request_lib.RequestError, match=says):
      ours.prepare(question, **given)


def test_views_have_the_numbers_of_their_row(ours):
  request = api.Request(Q, images=[shade(1), shade(2)])
  parts = ours.model.config, ours.tokenizer
  got, batch = conversation.next_turn(request, *parts)
  assert context_lib.extended(got, batch).units == (9, 9)
  first, second = (np.unique(v.regions).tolist() for v in got.views)
  assert first == list(range(9)) and second == list(range(9, 18))
  none, batch = conversation.next_turn(api.Request(Q), *parts)
  assert context_lib.extended(none, batch).units == ()
  assert none.views == ()


def test_pictures_of_two_turns_are_what_was_trained(tiny_config, tmp_path):
  """With tiles a picture alone in its turn is tiled, in a row as when asked."""
  rng = np.random.default_rng(0)
  pictures = [
    rng.integers(0, 256, size, np.uint8) for size in ((60, 150, 3), (90, 40, 3))
  ]
  said = []
  for i, picture in enumerate(pictures):
    Image.fromarray(picture).save(tmp_path / f"{i}.png")
    said.append({"from": "human", "value": f"<image>\n{Q}"})
    said.append({"from": "gpt", "value": "a fox"})
  row = dict(images=["0.png", "1.png"], conversations=said)
  (tmp_path / "data.json").write_text(json.dumps([row]))
  config = tiny_config(
    model__tiling=dict(kind="anyres", pinpoints=[[70, 140], [140, 70]]),
    data__source="llava_json",
    data__path=str(tmp_path / "data.json"),
    data__max_units=4,
    data__sequence_length=400,
    train__features="none",
  )
  rows = pipeline.Batcher(config, llava.SOURCE.make(config, "train"))
  trained = rows.batch([(0, 0)], rows=1).batch
  tokenizer = tokenizer_lib.Tokenizer.load()
  talk = (
    messages.question(Q),
    messages.plain(messages.ASSISTANT, "a fox"),
  )
  answered = context_lib.empty(config.model)
  answered = dataclasses.replace(answered, talk=talk)
  asked = [
    conversation.next_turn(
      api.Request(Q, after, images=[p]), config, tokenizer
    )[1]
    for p, after in zip(pictures, (None, answered), strict=True)
  ]

  def tokens(batch):
    units = batch.layout.unit[0][batch.layout.role[0] == types.Role.VISUAL]
    return np.unique(units, return_counts=True)[1].tolist()

  assert tokens(trained) == [*tokens(asked[0]), *tokens(asked[1])]
  assert len(tokens(trained)) == 4
  pixels = np.concatenate([batch.images[0] for batch in asked])
  np.testing.assert_array_equal(trained.images[0][: len(pixels)], pixels)


def test_an_answer_goes_on_from_what_it_begins_with(model):
  """What it begins with is read and not said; the next turn holds both."""
  ours = model()
  plain = ours.generate(Q, max_tokens=3)
  begun = ours.generate(Q, max_tokens=3, begins="Best Option: (")
  added = ours.tokenizer.encode("Best Option: (")
  asked = plain.context.ids[: len(plain.context.ids) - 2]  # two of its tokens
  assert begun.context.ids[: len(asked) + len(added)] == (*asked, *added)
  assert "Best" not in begun.text
  said = "".join(part.text for part in begun.context.talk[-1].parts)
  assert said == f"Best Option: ({begun.text}"
  after = ours.generate("and now?", begun.context, max_tokens=2)
  assert after.context.ids[: len(asked)] == asked
