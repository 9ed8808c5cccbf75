"""A batch without images needs no parameters but the decoder's."""

import jax
import numpy as np

import compare
import read_rows
from gaze_jax import config as config_lib
from gaze_jax.layout import row as row_lib
from gaze_jax.models import decoder
from gaze_jax.models import mllm

CONFIG = config_lib.ModelConfig(
  vision=config_lib.VisionConfig(
    image_size=28, width=8, depth=1, heads=2, mlp_dim=8, position_grid=2
  ),
  decoder=config_lib.DecoderConfig(
    vocab_size=32, width=16, depth=2, head_dim=4, mlp_dim=16
  ),
  gaze=config_lib.GazeConfig(region=(1, 1, 1), context_tokens=2, top_k=2),
)
SHAPE = row_lib.RowShape(
  slots=16,
  units=1,
  unit_tokens=4,
  regions=4,
  region_length=1,
  answer_slots=4,
  region=(1, 1, 1),
  context_tokens=2,
)


def test_text_alone():
  row = row_lib.lay_out(
    [row_lib.Text([1, 2, 3]), row_lib.Text([4, 5], 0, 0)], SHAPE
  )
  text = row_lib.make_batch([row], None)
  budget = np.full(1, 2, np.int32)
  params = {
    "decoder": jax.jit(decoder.init, static_argnums=0)(
      CONFIG.decoder, jax.random.key(0)
    )
  }
  run = jax.jit(mllm.apply, static_argnames="config")
  got = run(params, CONFIG, text, budget).logits
  black = row_lib.make_batch([row], np.zeros((1, 1, 28, 28, 3), np.float32))
  whole = jax.jit(mllm.init, static_argnums=0)(CONFIG, jax.random.key(1))
  whole = {k: v for k, v in whole.items() if k != "decoder"} | params
  whole = mllm.nn.meta.unbox(whole)
  want = run(whole, CONFIG, black, budget).logits
  compare.close(got, want)
  _, logits, _ = read_rows.read(params, CONFIG, text, budget, capacity=16)
  assert np.isfinite(logits).all()
