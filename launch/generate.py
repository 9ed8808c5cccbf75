"""Answers a question about an image, and draws where the model looked.

python launch/generate.py --workdir=DIR --image=FILE --question=TEXT
    [--out=gaze.png] [--top_k=K] [--layers=0,2] [--heads=1]
"""

import pathlib

from absl import flags

from gaze_jax import cli
from gaze_jax.data import images
from gaze_jax.decode import overlay
from gaze_jax.decode import trace
from gaze_jax.evals import answer

_WORKDIR = flags.DEFINE_string("workdir", None, "a workdir of launch/train.py")
_IMAGE = flags.DEFINE_string("image", None, "an image file")
_QUESTION = flags.DEFINE_string("question", None, "the question")
_OUT = flags.DEFINE_string("out", "gaze.png", "the picture to write")
_TOP_K = flags.DEFINE_integer("top_k", None, "K, the budget", 0)
_TOKENS = flags.DEFINE_integer("max_tokens", answer.MAX_TOKENS, "at most", 1)
_LAYERS = flags.DEFINE_list("layers", None, "layers drawn; default all")
_HEADS = flags.DEFINE_list("heads", None, "query heads drawn; default all")
flags.mark_flags_as_required(["workdir", "image", "question"])


def main() -> None:
  picked = [cli.whole_numbers(f) for f in (_LAYERS, _HEADS)]
  overlay.check_name(_OUT.value)
  model = answer.load(pathlib.Path(_WORKDIR.value))
  decoder = model.config.model.decoder
  trace.within(picked[0], decoder.depth, "layer")
  trace.within(picked[1], decoder.query_heads, "head")
  image = images.decode(_IMAGE.value, model.config.data.max_pixels)
  reply = answer.Answer(
    model,
    image,
    _QUESTION.value,
    top_k=_TOP_K.value,
    max_tokens=_TOKENS.value,
  )
  said = ""
  for text in reply:
    print(text[len(said) :], end="", flush=True)
    said = text
  print(reply.text[len(said) :], end="")
  print(f"\n\n{reply.accounting().text()}")
  reply.picture(layers=picked[0], heads=picked[1]).save(_OUT.value)
  print(f"\nwrote {_OUT.value}")


if __name__ == "__main__":
  cli.main(main)
