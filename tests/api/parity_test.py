"""Greedy answers of the engine, reading all regions, against transformers'.

Tiny random models, whose last layers are scaled until answers vary. The
prompts are raw: `raw_prompts.make`, `reading.read`, `engine.Decoding`.
"""

import dataclasses

import checkpoints
import pytest
import tokenizers
import torch
import transformers

import compare
import raw_prompts
from gaze_jax import config as config_lib
from gaze_jax.data import prompts
from gaze_jax.decode import context
from gaze_jax.decode import engine
from gaze_jax.decode import reading
from gaze_jax.models import mllm
from gaze_jax.weights import load

COUNT = 12
# 139 bytes and so tokens, which are read in two pieces.
LONG = (
  "Then the fox went over the hill, past seven old mills; why did nobody ask"
  " where it lived, or whom it had left? Say so in a few short words!"
)[:139]
VOCABULARY = 258
PINPOINTS = [[28, 28], [28, 56], [56, 28], [56, 56]]


@dataclasses.dataclass
class Pair:
  """A model of transformers, and ours from its checkpoint."""

  theirs: torch.nn.Module
  config: config_lib.ModelConfig
  params: mllm.Params
  tokenizer: tokenizers.Tokenizer

  def ours(self, prompt, images=(), count=COUNT):
    """Ids said to a prompt."""
    request = raw_prompts.make(
      prompt, self.tokenizer, self.config, images=list(images)
    )
    batch = prompts.batch([request], self.config)
    empty = context.empty(self.config)
    # More than there are: every region is read.
    read = reading.read(
      self.params, self.config, empty, batch, 1000, room=count
    )
    decoding = engine.Decoding(
      self.params, self.config, [read], [1000], max_tokens=[count], stop=[-1]
    )
    decoding.run(count)
    assert decoding.entries(0)[0] == read.visual_tokens
    return decoding.tokens(0)

  def their_answer(self, inputs, count=COUNT):
    """What follows the prompt, with nothing that ends it."""
    if "attention_mask" not in inputs:
      inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
      said = self.theirs.generate(
        **inputs,
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
      )
    compare.decided(torch.stack(said.logits))
    return said.sequences[0, inputs["input_ids"].shape[1] :].tolist()

  def agree(self, prompt, inputs, images=()):
    """The same text, and no dull one."""
    want, got = self.their_answer(inputs), self.ours(prompt, images)
    assert len(set(want)) > 3, want
    assert got == want
    assert self.tokenizer.decode(got) == self.tokenizer.decode(want)
    return got


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory):
  def make(kind, config, pixels=None):
    directory = tmp_path_factory.mktemp(kind.__name__)
    theirs = checkpoints.drawn(kind, config, 0.3)
    theirs.save_pretrained(directory)
    if pixels:
      pixels.save_pretrained(directory)
    config, params = load.load(directory)
    tokenizer = checkpoints.byte_tokenizer(VOCABULARY)
    return Pair(theirs, config.model, params, tokenizer)

  return make


@pytest.mark.nightly
def test_a_text_model_says_what_transformers_says(pair_of):
  """Qwen3; the decoders below are Qwen2 and Llama."""
  config = transformers.Qwen3Config(
    **checkpoints.TEXT, vocab_size=VOCABULARY, head_dim=12
  )
  pair = pair_of(transformers.Qwen3ForCausalLM, config)
  said = []
  for prompt in ("what is it?", LONG):
    ids = torch.tensor([pair.tokenizer.encode(prompt).ids])
    said.append(pair.agree(prompt, dict(input_ids=ids)))
  assert said[0] != said[1]


@pytest.fixture(scope="module")
def onevision(pair_of):
  config = checkpoints.onevision_config(
    VOCABULARY,
    image_grid_pinpoints=PINPOINTS,
    vision_aspect_ratio="anyres_max_4",
  )
  pixels = checkpoints.onevision_pixels(PINPOINTS)
  return pair_of(checkpoints.onevision, config, pixels)


@pytest.fixture(scope="module")
def llava(pair_of):
  config = checkpoints.llava_config(VOCABULARY)
  return pair_of(checkpoints.llava, config, checkpoints.llava_pixels())


@pytest.mark.nightly
@pytest.mark.parametrize(
  "prompt, sizes",
  [
    ("see <image>\nwhat?", [(40, 83)]),  # tiles of one row
    ("<image> and <image>?", [(30, 61), (28, 28)]),
  ],
  ids=["one wide image", "two images"],
)
def test_onevision_says_what_transformers_says(onevision, prompt, sizes):
  processor = checkpoints.onevision_processor(VOCABULARY, PINPOINTS)
  images = [checkpoints.picture(size, seed) for seed, size in enumerate(sizes)]
  prompt += " tell me:"
  inputs = processor(text=prompt, images=[images], return_tensors="pt")
  said = onevision.agree(prompt, dict(inputs), images)
  # The pictures matter.
  others = [checkpoints.picture(size, i + 9) for i, size in enumerate(sizes)]
  assert onevision.ours(prompt, others) != said


@pytest.mark.nightly
@pytest.mark.parametrize("size", [(28, 28), (33, 90)])
def test_llava_says_what_transformers_says(llava, size):
  processor = checkpoints.llava_processor(VOCABULARY)
  prompt, image = "see <image>\nwhat is it?", checkpoints.picture(size)
  inputs = processor(text=prompt, images=[image], return_tensors="pt")
  said = llava.agree(prompt, dict(inputs), [image])
  assert llava.ours(prompt, [checkpoints.picture(size, 5)]) != said
