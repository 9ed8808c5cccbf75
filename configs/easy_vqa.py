"""easy-VQA on two CPU cores, in packed rows, with a real frozen ViT-S/14.

bash launch/easy_vqa.sh

which trains by

python launch/train.py --config=configs/easy_vqa.py --workdir=out/easy_vqa/run
"""

import emoji_tiny
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = emoji_tiny.get_config()
  config.model.vision.image_size = 84  # 6 x 6 tokens
  config.model.gaze = ConfigDict(
    dict(region=(2, 2, 1), top_k=2, context_tokens=1)
  )
  config.data = ConfigDict(
    dict(
      source="prepared",
      path="out/easy_vqa/train",
      packing="first_fit",
      packing_window=1024,
      row_samples=12,
      pool_rows=16,
      pool_tiles=136,
      max_units=12,
      sequence_length=512,
      answer_slots=64,
    )
  )
  config.train.steps = 300
  config.train.features = "none"
  config.eval = ConfigDict(dict(batch_size=16, budgets=()))
  return config
