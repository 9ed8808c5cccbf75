"""SigLIP2-So400m/16 + Qwen3-4B with Gaze Attention: the paper's 4B model.

  python launch/convert.py --from=Qwen3-4B --vision=siglip2-so400m-patch16-384 \
    --config=configs/cambrian_4b.py --to=weights/cambrian_4b --dtype=bfloat16
  python launch/train.py --config=configs/cambrian_4b.py --workdir=out/4b \
    --config.train.init_from=weights/cambrian_4b \
    --config.data.tokenizer=weights/cambrian_4b/hf/tokenizer.json \
    --config.data.path=mine.json --config.data.image_folder=images

This trains everything: LLaVA's second stage. configs/cambrian_4b_stage1.py is
the first, and what it made is where this one starts from.

The sizes are those of the published config.json of both, from memory: a
checkpoint that differs is refused with the field. Which hidden state of the
tower the paper reads is not published; this is LLaVA's, the last but one.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      model=dict(
        vision=dict(
          image_size=384,
          patch_size=16,
          width=1152,
          depth=27,
          heads=16,
          mlp_dim=4304,
          class_token=False,
          layer_scale=False,
          activation="gelu_tanh",
          position_grid=24,
          hidden_state=-2,
          remat="full",
          mean=(0.5, 0.5, 0.5),
          std=(0.5, 0.5, 0.5),
          resample="bilinear",
          dtype="bfloat16",
        ),
        decoder=dict(
          vocab_size=151936,
          width=2560,
          depth=36,
          query_heads=32,
          kv_heads=8,
          head_dim=128,
          mlp_dim=9728,
          rope_theta=1e6,
          qk_norm=True,
          tied=True,
          remat="full",
          dtype="bfloat16",
        ),
        gaze=dict(region=(6, 6, 1), context_tokens=4, top_k=4),
      ),
      data=dict(
        sequence_length=2048,
        answer_slots=1024,
      ),
      train=dict(
        steps=10_000,
        batch_size=256,
        learning_rate=1e-5,
        warmup_steps=300,
        weight_decay=0.0,
      ),
    )
  )
