"""Decoders against transformers: every family, both RoPE styles, both heads."""

import dataclasses
import json
import operator

import jax
import numpy as np
import pytest
import torch
import transformers

import compare
from gaze_jax.weights import errors
from gaze_jax.weights import load
from gaze_jax.weights import verify
from gaze_jax.weights.families import decoders

SIZES = dict(
  vocab_size=60,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=64,
)
FAMILIES = {
  "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {}),
  # heads x head_dim is not the width
  "qwen3": (
    transformers.Qwen3Config,
    transformers.Qwen3ForCausalLM,
    dict(head_dim=12),
  ),
  "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {}),
}
CASES = [(f, tied) for f in FAMILIES for tied in (False, True)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A tiny random model of a family and the directory that it is saved in."""
  made = {}

  def make(family, tied, **changed):
    key = (family, tied, *sorted(changed.items()))
    if key not in made:
      config_of, model_of, more = FAMILIES[family]
      config = config_of(
        **SIZES | more | changed,
        tie_word_embeddings=tied,
        rope_parameters=dict(rope_type="default", rope_theta=500.0),
      )
      torch.manual_seed(0)
      model = model_of(config).eval()
      with torch.no_grad():
        for weight in model.parameters():  # norms and biases are 1 and 0
          weight.add_(0.1 * torch.randn_like(weight))
      path = tmp_path_factory.mktemp(family)
      model.save_pretrained(path)
      made[key] = model, path
    return made[key]

  return make


def read(path):
  config, params = load.load(path)
  return config.model, params


@pytest.mark.few(1)
@pytest.mark.parametrize("family, tied", CASES)
def test_logits_and_hidden_states(saved, family, tied):
  model, path = saved(family, tied)
  config, params = read(path)
  tokens = np.random.default_rng(1).integers(0, 60, 20)
  with torch.no_grad():
    out = model(torch.tensor(tokens[None]), output_hidden_states=True)
  got = verify.text_logits(params, config, tokens)
  compare.close(got, out.logits[0, :-1].numpy())
  # A decoder cut after n layers gives its hidden state through an identity.
  for depth in range(1, 3):
    cut = dataclasses.replace(config.decoder, depth=depth, tied=False)
    head = np.eye(32, 60, dtype=np.float32)
    decoder = params["decoder"] | {
      "layers": jax.tree.map(
        operator.itemgetter(slice(depth)), params["decoder"]["layers"]
      ),
      "final_norm": {"scale": np.ones(32, np.float32)},
      "head": {"weight": head},
    }
    got = verify.text_logits(
      {"decoder": decoder}, dataclasses.replace(config, decoder=cut), tokens
    )
    want = out.hidden_states[depth][0, :-1].numpy()
    norm = np.sqrt((want**2).mean(-1, keepdims=True) + config.decoder.norm_eps)
    compare.close(got[:, :32], want / norm)


def test_both_styles_of_rope(saved, tmp_path):
  _, path = saved("qwen2", False)
  raw = json.loads((path / "config.json").read_text())
  assert raw["rope_parameters"]["rope_theta"] == 500.0
  old = {k: v for k, v in raw.items() if k != "rope_parameters"}
  old |= dict(rope_theta=500.0, rope_scaling=None)
  assert decoders.config(old) == decoders.config(raw)
  assert decoders.config(old).rope_theta == 500.0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_defaults_of_a_nested_config_are_those_of_transformers(family):
  config_of = FAMILIES[family][0]
  said = json.loads(config_of().to_json_string(use_diff=False))
  assert decoders.config(
    {"model_type": family}, nested=True
  ) == decoders.config(said)


@pytest.mark.parametrize("family, tied", CASES)
def test_our_config_makes_one_for_transformers(saved, family, tied, tmp_path):
  model, path = saved(family, tied)
  config = decoders.config(json.loads((path / "config.json").read_text()))
  raw = decoders.to_hf(config)
  assert decoders.config(raw) == config
  (tmp_path / "config.json").write_text(json.dumps(raw))
  again = transformers.AutoConfig.from_pretrained(tmp_path)
  for key in SIZES:
    if key != "max_position_embeddings":
      assert getattr(again, key) == getattr(model.config, key)
  assert again.rope_parameters["rope_theta"] == 500.0


@pytest.mark.parametrize(
  "changed, says",
  [
    (dict(model_type="gemma3"), "model_type = 'gemma3'.*known are .*qwen3"),
    (dict(hidden_act="gelu"), "hidden_act = 'gelu'"),
    (dict(use_sliding_window=True), "use_sliding_window = True"),
    (dict(layer_types=["sliding_attention"] * 3), "layer_types"),
    (dict(attention_bias=True), "attention_bias = True"),
    (dict(mlp_bias=True), "mlp_bias"),
    (dict(rope_scaling={"rope_type": "yarn"}), "rope_type = .*yarn"),
    (dict(rope_scaling={"type": "linear"}), "rope_type = .*linear"),
    (dict(rope_parameters={"rope_type": "llama3"}), "rope_type = .*llama3"),
    (dict(quantization_config={"bits": 4}), "quantization_config"),
    (dict(hidden_size=None), "lacks hidden_size"),
  ],
)
def test_what_is_not_computed_is_refused_by_name(saved, changed, says):
  _, path = saved("qwen2", False)
  raw = json.loads((path / "config.json").read_text()) | changed
  with pytest.raises(errors.ConversionError, match=says):
    decoders.config(raw)
