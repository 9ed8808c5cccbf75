"""EmojiVideos on two CPU cores in minutes, with a real frozen ViT-S/14.

python launch/train.py --config=configs/emoji_videos.py --workdir=out/videos
"""

import emoji_tiny
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = emoji_tiny.get_config()
  config.model.vision.image_size = 112
  config.model.gaze = ConfigDict(
    dict(region=(4, 4, 1), top_k=4, context_tokens=1)
  )
  config.data = ConfigDict(
    dict(
      source="emoji_videos",
      samples=1500,
      questions=8,
      frames=8,
      max_units=8,
      sequence_length=720,
      answer_slots=48,
    )
  )
  return config
