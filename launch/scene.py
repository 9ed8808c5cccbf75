"""Writes a picture of EmojiScenes and prints a question about it.

python launch/scene.py --config=configs/emoji_tiny.py --out=scene.png
    [--split=new] [--index=3] [--kind=what]
"""

from absl import flags
from PIL import Image

from gaze_jax import cli
from gaze_jax import errors
from gaze_jax import plugins

_OUT = cli.define_path("out", "the picture to write")
_SPLIT = flags.DEFINE_string("split", "new", "train, new or held_out_pairs")
_INDEX = flags.DEFINE_integer("index", 3, "number of the canvas", 0)
_KIND = flags.DEFINE_string("kind", "what", "what, where, count, colour ...")
flags.mark_flag_as_required("out")


def main() -> None:
  config = cli.read_config()
  source = plugins.source(config.data.source).make(config, _SPLIT.value)
  if _INDEX.value >= len(source):
    raise errors.GazeError(
      f"--index={_INDEX.value}: the split {_SPLIT.value} has {len(source)}"
    )
  sample = source.sample(_INDEX.value)
  asked = [q for q in sample.questions if q.kind == _KIND.value]
  if not asked:
    kinds = ", ".join(sorted({q.kind for q in sample.questions}))
    raise errors.GazeError(
      f"--kind={_KIND.value}: this scene has questions of {kinds}"
    )
  Image.fromarray(sample.images[0]).save(_OUT.value)
  print(asked[0].text)


if __name__ == "__main__":
  cli.main(main, config=True)
