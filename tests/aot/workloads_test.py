"""What is compiled, before it is: shapes and shardings."""

import dataclasses

import jax.numpy as jnp

from gaze_jax import config as config_lib
from gaze_jax.aot import workloads
from gaze_jax.parallel import mesh as mesh_lib

MODEL = dict(
  vision=dict(
    image_size=168,
    width=16,
    depth=1,
    heads=2,
    mlp_dim=32,
    class_token=False,
    layer_scale=False,
  ),
  decoder=dict(
    vocab_size=64,
    width=32,
    depth=2,
    query_heads=4,
    kv_heads=2,
    head_dim=128,
    mlp_dim=64,
    dtype="bfloat16",
  ),
  gaze=dict(region=(6, 6), context_tokens=4),
)
CONFIG = config_lib.from_config_dict(
  dict(model=MODEL, data=dict(sequence_length=512))
)


def test_a_decoding_step_reads_pages_that_are_shaped_for_the_kernel():
  """Of [36, 128] each they would all be copied, in every layer."""
  workload = workloads.decode(CONFIG, mesh_lib.one_device(), units=3, rows=5)
  params, visual, linear, tokens, budget = workload.arguments
  # 12 x 12 tokens are 4 regions of 36, in tiles of 4.
  assert visual.k.shape == (2, 5, 2, 3 * 4, 9, 4, 128)
  assert visual.valid.shape == (5, 12, 36)
  # 12 context tokens, 128 of a prompt, 256 of an answer; 128 at a time.
  assert linear.k.shape == (2, 5, 2, 512, 128) and linear.visual is None
  assert tokens.shape == (5, 1) and budget.shape == (5,)
  assert params.keys() == {"decoder"}
  held = workload.bytes_by_part()
  pages = 2 * 2 * 5 * 2 * 12 * 36 * 128 * 2
  descriptors = 4 * 2 * 5 * 2 * 12 * 128
  of_all = 5 * 12 * 36 + 4 * 5 * 12
  text = 2 * 2 * 5 * 2 * 512 * 128 * 2 + 2 * 4 * 5
  assert held["cache"] == pages + descriptors + of_all + text
  assert held["batch"] == 2 * 4 * 5
  layers = params["decoder"]["layers"]
  assert layers["mlp"]["up"]["weight"].dtype == jnp.bfloat16
  assert layers["mlp_norm"]["scale"].dtype == jnp.float32


def test_a_prompt_is_as_long_as_its_images():
  workload = workloads.prefill(CONFIG, mesh_lib.one_device(), units=3, rows=2)
  params, batch, _ = workload.arguments
  assert workload.name == "prefill_432"
  # 3 x (144 + 4) and 128 of text are 572: the next multiple of 512.
  assert batch.tokens.shape == (2, 1024)
  assert batch.images.shape == (2, 3, 168, 168, 3)
  assert params["vision"]["patch"]["kernel"].dtype == jnp.float32


def test_a_step_with_cached_features_has_no_tower():
  model = dataclasses.replace(
    CONFIG.model, vision=dataclasses.replace(CONFIG.model.vision, frozen=True)
  )
  train = dataclasses.replace(CONFIG.train, batch_size=4, features="cached")
  config = dataclasses.replace(CONFIG, model=model, train=train)
  workload = workloads.train(config, mesh_lib.one_device())
  state, batch, budget, frozen = workload.arguments
  assert "vision" not in frozen and "vision" not in state.params
  assert batch.images.shape == (4, 1, 144, 16)
  assert batch.images.dtype == jnp.float16 and budget.shape == (4,)
