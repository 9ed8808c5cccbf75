"""Stage 1 of configs/cambrian_4b.py: projector and context tokens alone.

  python launch/train.py --config=configs/cambrian_4b_stage1.py \
    --workdir=out/4b_stage1 --config.train.init_from=weights/cambrian_4b \
    --config.data.tokenizer=weights/cambrian_4b/hf/tokenizer.json \
    --config.data.path=captions.json --config.data.image_folder=images
  python launch/convert.py --from=out/4b_stage1 --to=weights/4b_stage1

Then configs/cambrian_4b.py with --config.train.init_from=weights/4b_stage1.
The steps are LLaVA-1.5's first stage: 558 thousand captions, once.
"""

import cambrian_4b
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return first_stage(cambrian_4b.get_config())


def first_stage(config: ConfigDict) -> ConfigDict:
  """Freezes all but the projector, which is new, and learns faster."""
  config.model.vision.frozen = True
  config.model.decoder.frozen = True
  config.train.update(
    batch_size=512, learning_rate=1e-3, steps=1090, warmup_steps=33
  )
  return config
