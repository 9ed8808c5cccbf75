"""Writes the questions of easy-VQA in LLaVA's format, for launch/prepare.py.

python launch/easy_vqa_rows.py --split=train --out=easy_vqa.json

Prints the folder that the image names are relative to.
"""

import json
import pathlib

from absl import flags

from gaze_jax import cli
from gaze_jax import whole_file
from gaze_jax.demo import easy_vqa

_OUT = cli.define_file("out", "the file to write")
_SPLIT = flags.DEFINE_enum("split", "train", easy_vqa.SPLITS, "of easy-VQA")
flags.mark_flag_as_required("out")


def main() -> None:
  whole_file.write(
    pathlib.Path(_OUT.value), json.dumps(easy_vqa.rows(_SPLIT.value))
  )
  print(easy_vqa.folder(_SPLIT.value))


if __name__ == "__main__":
  cli.main(main)
