"""What is compiled, before it is: shapes and shardings."""

import dataclasses

import jax.numpy as jnp

from gaze_jax import config as config_lib
from gaze_jax.aot import answering
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
  gaze=dict(region=(6, 6, 1), context_tokens=4),
)
CONFIG = config_lib.from_config_dict(
  dict(model=MODEL, data=dict(sequence_length=512))
)


def answering_programs():
  """By name: of a prompt of 3 images, on one device."""
  batch = answering.request(CONFIG.model, 3)
  mesh = mesh_lib.one_device()
  found = answering.of_request(CONFIG.model, mesh, batch, pool=5)
  return {f"{one.name}; {one.command}": one for one in found}


def test_programs_of_a_request_are_of_its_sizes():
  found = answering_programs()
  # 3 x (144 + 4) slots of units; 8 and 120 of text.
  alone = "launch/generate.py, launch/chat.py"
  every = f"{alone}, Model.generate, Model.generate_many"
  both = f"{alone}, Model.generate"
  many = "Model.generate_many"
  assert list(found) == [
    f"vision tower, 3 tiles; {every}",
    f"embedding of a prompt, 768 slots; {every}",
    f"units of a prompt, 512 slots; {both}",
    f"prompt text, 8 slots; {both}",
    "prompt text, 128 slots, the last; Model.generate",
    f"prompt text, 128 slots, the last, traced; {alone}",
    f"first token, 1 rows; {both}",
    f"decoding step, 1 rows, traced; {alone}",
    "decoding loop, 1 rows; Model.generate",
    f"units of a prompt, 512 slots, for a pool; {many}",
    f"prompt text, 8 slots, for a pool; {many}",
    f"prompt text, 128 slots, the last, for a pool; {many}",
    f"first token, 1 rows, for a pool; {many}",
    f"a row among others, 5 rows; {many}",
    f"decoding loop, 5 rows, of a pool; {many}",
  ]


def test_a_decoding_step_reads_pages_that_are_shaped_for_the_kernel():
  """Of [36, 128] each they would all be copied, in every layer."""
  workload = answering_programs()[
    "decoding loop, 5 rows, of a pool; Model.generate_many"
  ]
  params, model, visual, carry, *_ = workload.arguments
  linear = carry.cache
  assert model == CONFIG.model
  # 12 x 12 tokens are 4 regions of 36, in tiles of 4; 12 of them fit in 16.
  assert visual.k.shape == (2, 5, 2, 16, 9, 4, 128)
  assert visual.valid.shape == (5, 16, 36)
  # 12 context tokens, 128 of a prompt, 256 of an answer: 256 or 1,024.
  assert linear.k.shape == (2, 5, 2, 1024, 128) and linear.visual is None
  assert carry.tokens.shape == (5, 256)
  assert params.keys() == {"decoder"}
  held = workload.bytes_by_part()
  pages = 2 * 2 * 2 * 16 * 36 * 128 * 2
  descriptors = 4 * 2 * 2 * 16 * 128
  of_all = 16 * 36 + 4 * 16 * 36
  text = 2 * 2 * 2 * 1024 * 128 * 2 + 2 * 4
  # Beside the pool there is a row that is being read.
  assert held["cache"] == 6 * (pages + descriptors + of_all + text)
  layers = params["decoder"]["layers"]
  assert layers["mlp"]["up"]["weight"].dtype == jnp.bfloat16
  assert layers["mlp_norm"]["scale"].dtype == jnp.float32
  whole = workload.parts["parameters"]
  assert whole.keys() == {"vision", "projector", "decoder"}
  assert whole["vision"]["patch"]["kernel"].dtype == jnp.float32


def test_a_batch_of_questions():
  eval_ = dataclasses.replace(CONFIG.eval, batch_size=5)
  config = dataclasses.replace(CONFIG, eval=eval_)
  workload = workloads.evaluate(config, mesh_lib.one_device(), ends=3)
  _, _, ends, batch, budget, override = workload.arguments
  assert workload.rows == 5 and ends.shape == (3,) and override is None
  assert batch.tokens.shape == (5, 512) and budget.shape == (5,)


def test_a_step_on_packed_rows_has_pools_and_a_budget_for_each_sample():
  data = dataclasses.replace(
    CONFIG.data,
    packing="first_fit",
    row_samples=5,
    pool_rows=2,
    pool_tiles=3,
  )
  train = dataclasses.replace(CONFIG.train, batch_size=4)
  config = dataclasses.replace(CONFIG, data=data, train=train)
  workload = workloads.train(config, mesh_lib.one_device())
  _, batch, budget, _ = workload.arguments
  assert batch.images.shape[:2] == (2, 3) and budget.shape == (4, 5)
  assert batch.tokens.shape[0] == 4


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
