"""A LLaVA-1.5 with a Llama vocabulary and its own chat format, all the way."""

import dataclasses
import json
import pathlib

import checkpoints
import pytest
import torch
import transformers

from gaze_jax import api
from gaze_jax.weights import exporting
from gaze_jax.weights import store
from tests import chat_families

pytestmark = pytest.mark.nightly  # it is asked turn by turn, compiled: 30 s

COUNT = 12


@dataclasses.dataclass
class Pair:
  """A model of transformers with its processor, and ours converted."""

  theirs: torch.nn.Module
  processor: transformers.LlavaProcessor
  ours: api.Model

  def want(self, talk, pictures):
    """What transformers says next, and its ids of the prompt."""
    inputs = self.processor.apply_chat_template(
      talk,
      add_generation_prompt=True,
      tokenize=True,
      return_dict=True,
      return_tensors="pt",
    )
    del pictures
    with torch.no_grad():
      out = self.theirs.generate(
        **inputs, max_new_tokens=COUNT, do_sample=False, pad_token_id=0
      )
    said = out[0, inputs["input_ids"].shape[1] :]
    text = self.processor.decode(said, skip_special_tokens=True)
    return text, said.tolist(), inputs["input_ids"][0].tolist()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  folder = tmp_path_factory.mktemp("vicuna")
  family = chat_families.FAMILIES["llava-1.5"]
  chat_families.save(family, folder)
  tokenizer = chat_families.theirs(folder)
  image = tokenizer.convert_tokens_to_ids("<image>")
  config = checkpoints.llava_config(len(tokenizer), image_token_index=image)
  theirs = checkpoints.drawn(checkpoints.llava, config, 0.3)
  with torch.no_grad():
    # Words, not single bytes, nor marks.
    theirs.lm_head.weight[:300] = 0
    theirs.lm_head.weight[image] = 0
  theirs.save_pretrained(folder)
  processor = checkpoints.llava_processor(
    tokenizer, chat_template=family.template
  )
  processor.save_pretrained(folder)
  checkpoints.to_ours(folder, folder / "ours")
  processor = transformers.LlavaProcessor.from_pretrained(str(folder))
  return Pair(theirs, processor, api.load(folder / "ours"))


def picture(seed):
  return checkpoints.picture((33, 40), seed)


def user(text, *pictures):
  shown = [dict(type="image", image=p) for p in pictures]
  return dict(role="user", content=[*shown, dict(type="text", text=text)])


def said(text):
  return dict(role="assistant", content=[dict(type="text", text=text)])


def test_it_answers_as_transformers_does_turn_by_turn(pair):
  """From `processor.apply_chat_template`: ids, text, and the next turns."""
  ours, talk, after = pair.ours, [], None
  image = pair.theirs.config.image_token_index
  questions = (
    ("what is this?", picture(1)),
    ("And that? ", picture(2)),
    "why?",
  )
  for question in questions:
    text, *shown = question if isinstance(question, tuple) else (question,)
    talk.append(user(text, *shown))
    want, ids, prompt = pair.want(talk, shown)
    answer = ours.generate(
      text, after, images=shown, max_tokens=COUNT, share=1.0
    )
    read = answer.context.ids[
      : len(answer.context.ids) - len(answer.tokens) + 1
    ]
    unit = 16  # tokens of a picture
    expanded = [i for x in read for i in ([image] * unit if x < 0 else [x])]
    assert expanded == prompt
    assert list(answer.tokens) == ids and answer.text == want
    assert len(set(ids)) > 3, ids
    stream = ours.stream(text, after, images=shown, max_tokens=COUNT, share=1.0)
    assert "".join(stream) == want
    talk.append(said(want))
    after = answer.context
  # Read before the question, and asked with it, are one.
  seen = ours.encode_image(picture(1))
  first = ours.generate("what is this?", seen, max_tokens=COUNT, share=1.0)
  assert first.text == talk[1]["content"][0]["text"]


def test_a_system_text_is_the_templates(pair):
  talk = [
    dict(role="system", content=[dict(type="text", text="Be brief.")]),
    user("what is this?", picture(3)),
  ]
  want, ids, _ = pair.want(talk, ())
  answer = pair.ours.generate(
    "what is this?",
    images=[picture(3)],
    system="Be brief.",
    max_tokens=COUNT,
    share=1.0,
  )
  assert (answer.text, list(answer.tokens)) == (want, ids)


def test_it_carries_its_chat_format_along(pair, tmp_path):
  """Out again it is a processor of transformers with the same template."""
  directory = pair.ours.config.data.tokenizer.removesuffix("/tokenizer.json")
  source = directory.removesuffix("/hf")
  exporting.write(store.open_stored(pathlib.Path(source)), tmp_path / "back")
  back = transformers.LlavaProcessor.from_pretrained(str(tmp_path / "back"))
  assert back.chat_template == pair.processor.chat_template
  config = json.loads((tmp_path / "back" / "config.json").read_text())
  assert config["image_token_index"] == pair.theirs.config.image_token_index
