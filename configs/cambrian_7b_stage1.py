"""Stage 1 of configs/cambrian_7b.py: projector and context tokens alone.

  python launch/train.py --config=configs/cambrian_7b_stage1.py ...

goes on as in configs/cambrian_4b_stage1.py, with 7b for 4b.
"""

import cambrian_4b_stage1
import cambrian_7b
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return cambrian_4b_stage1.first_stage(cambrian_7b.get_config())
