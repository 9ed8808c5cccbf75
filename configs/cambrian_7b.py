"""SigLIP2-So400m/16 + Qwen2.5-7B with Gaze Attention: the paper's 7B model.

  python launch/convert.py --from=Qwen2.5-7B-Instruct \
    --vision=siglip2-so400m-patch16-384 --config=configs/cambrian_7b.py \
    --to=weights/cambrian_7b --dtype=bfloat16
"""

import cambrian_4b
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = cambrian_4b.get_config()
  config.model.decoder.update(
    vocab_size=152064,
    width=3584,
    depth=28,
    query_heads=28,
    kv_heads=4,
    mlp_dim=18944,
    qk_norm=False,
    qkv_bias=True,
    tied=False,
  )
  return config
