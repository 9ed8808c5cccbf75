"""Converts weights between transformers' format and ours.

  python launch/convert.py --from=HF_DIR --to=DIR             in
  python launch/convert.py --from=TEXT_HF_DIR --vision=VISION_HF_DIR \
    --config=configs/cambrian_4b.py --to=DIR                  two into one
  python launch/convert.py --from=DIR --export=HF_DIR         out
  python launch/convert.py --inspect=DIR                      what is in it
  python launch/convert.py --from=DIR --verify=HF_DIR         same numbers?

--from=WORKDIR takes the newest checkpoint of launch/train.py. --dry-run checks
everything and writes nothing. --dtype=float32|bfloat16|float16 casts.
"""

import pathlib

from absl import flags

from gaze_jax import cli
from gaze_jax import errors
from gaze_jax.evals import transfer

_FROM = flags.DEFINE_string("from", None, "a directory of weights")
_VISION = flags.DEFINE_string("vision", None, "a vision tower to join with it")
_TO = flags.DEFINE_string("to", None, "a new directory, in our format")
_EXPORT = flags.DEFINE_string("export", None, "one in transformers' format")
_INSPECT = flags.DEFINE_string("inspect", None, "print what is in a directory")
_VERIFY = flags.DEFINE_string("verify", None, "compare with transformers there")
_DRY_RUN = flags.DEFINE_bool("dry-run", False, "check all, write nothing")
_DTYPE = flags.DEFINE_enum(
  "dtype", None, ["float32", "bfloat16", "float16"], "default: as it is"
)
