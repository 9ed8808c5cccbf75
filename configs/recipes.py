"""Cambrian in its two stages, on the slices that it was compiled for.

  python launch/aot_check.py --recipes
  python launch/train.py --config=configs/recipes.py:cambrian_4b-stage1-v5e-64 \
    --workdir=out/stage1 --config.train.init_from=weights/cambrian_4b \
    --config.data.tokenizer=weights/cambrian_4b/hf/tokenizer.json \
    --config.data.path=captions.json --config.data.image_folder=images

The stages are those of configs/cambrian_4b.py and configs/cambrian_7b.py. A
slice is called as Google calls it: v5p-64 has 64 cores, which are 32 chips; of
v5e and v6e a chip is a core. 8x80GB is one host of GPUs.
"""

import cambrian_4b
import cambrian_4b_stage1
import cambrian_7b
import cambrian_7b_stage1
from ml_collections import ConfigDict

STAGES = {
  ("cambrian_4b", "stage1"): cambrian_4b_stage1,
  ("cambrian_4b", "stage2"): cambrian_4b,
  ("cambrian_7b", "stage1"): cambrian_7b_stage1,
  ("cambrian_7b", "stage2"): cambrian_7b,
}

TOPOLOGIES = {
  "v5e-64": "v5e:8x8",
  "v5e-256": "v5e:16x16",
  "v6e-64": "v6e:8x8",
  "v5p-64": "v5p:2x4x4",
  "8x80GB": "gpu:8x80GB",
}

# Model, stage, slice: size of fsdp, micro-batches, what the decoder and the
# tower run again in the backward pass.
RECIPES = {
  ("cambrian_4b", "stage1", "v5e-64"): (32, 2, "full", "none"),
  ("cambrian_4b", "stage1", "v5e-256"): (32, 1, "full", "none"),
  ("cambrian_4b", "stage1", "v6e-64"): (32, 1, "full", "none"),
  ("cambrian_4b", "stage1", "v5p-64"): (32, 2, "full", "none"),
  ("cambrian_4b", "stage1", "8x80GB"): (8, 8, "full", "none"),
  ("cambrian_4b", "stage2", "v5e-64"): (32, 4, "full", "full"),
  ("cambrian_4b", "stage2", "v5e-256"): (32, 1, "full", "full"),
  ("cambrian_4b", "stage2", "v6e-64"): (32, 2, "full", "full"),
  ("cambrian_4b", "stage2", "v5p-64"): (32, 1, "full", "full"),
  ("cambrian_4b", "stage2", "8x80GB"): (8, 8, "full", "full"),
  ("cambrian_7b", "stage1", "v5e-64"): (32, 4, "full", "none"),
  ("cambrian_7b", "stage1", "v5e-256"): (32, 1, "full", "none"),
  ("cambrian_7b", "stage1", "v6e-64"): (32, 2, "full", "none"),
  ("cambrian_7b", "stage1", "v5p-64"): (32, 2, "full", "none"),
  ("cambrian_7b", "stage1", "8x80GB"): (8, 8, "full", "none"),
  ("cambrian_7b", "stage2", "v5e-64"): (32, 4, "full", "full"),
  ("cambrian_7b", "stage2", "v5e-256"): (32, 1, "full", "full"),
  ("cambrian_7b", "stage2", "v6e-64"): (32, 2, "full", "full"),
  ("cambrian_7b", "stage2", "v5p-64"): (32, 2, "full", "full"),
  ("cambrian_7b", "stage2", "8x80GB"): (8, 8, "full", "full"),
}


def names() -> dict[str, str]:
  """The topology that each recipe is for."""
  return {"-".join(key): TOPOLOGIES[key[-1]] for key in RECIPES}


def get_config(name: str) -> ConfigDict:
  model, stage, _ = key = tuple(name.split("-", 2))
  fsdp, accumulation, remat, vision_remat = RECIPES[key]
  config = STAGES[model, stage].get_config()
  config.train.accumulation = accumulation
  config.model.decoder.remat = remat
  config.model.vision.remat = vision_remat
  config.parallel = dict(data=-1, fsdp=fsdp)
  return config
