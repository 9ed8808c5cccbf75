"""lmms-eval's command, whose llava_hf takes OneVision without torchvision.

AutoProcessor of transformers wants torchvision for that family's videos, and
torchvision breaks beside our torch. Called by outside_proof.py.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import checkpoints
import transformers
from lmms_eval.cli import dispatch
from lmms_eval.models.simple import llava_hf


class OneVision(llava_hf.AutoProcessor):
  """A processor for images alone."""

  @classmethod
  def from_pretrained(cls, folder, **how):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    made = checkpoints.onevision_processor(tokenizer, checkpoints.PINPOINTS)
    made.chat_template = tokenizer.chat_template
    return made


if __name__ == "__main__":
  llava_hf.AutoProcessor = OneVision
  dispatch.main()
