"""A small model on your own LLaVA-format conversations, on a CPU.

  python launch/train.py --config=configs/llava_tiny.py --workdir=out/mine \
    --config.data.path=mine.json --config.data.image_folder=images
"""

import emoji_tiny
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = emoji_tiny.get_config()
  config.data = ConfigDict(dict(sequence_length=416, answer_slots=128))
  return config
