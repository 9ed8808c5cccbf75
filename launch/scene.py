"""Writes a picture of EmojiScenes and prints a question about it.

python launch/scene.py --config=configs/emoji_tiny.py --out=scene.png
    [--split=new] [--index=3] [--kind=what]

or all of a split, as the files of a task of launch/benchmark.py:

python launch/scene.py --config=configs/emoji_tiny.py --all=DATA/emoji_scenes
"""

import json
import pathlib

from absl import flags
from PIL import Image

from gaze_jax import cli
from gaze_jax import errors
from gaze_jax import plugins
from gaze_jax import whole_file
from gaze_jax.data import samples

_OUT = cli.define_path("out", "the picture to write")
_ALL = cli.define_path("all", "a folder to write all pictures and questions to")
_SPLIT = flags.DEFINE_string("split", "new", "train, new or held_out_pairs")
_INDEX = flags.DEFINE_integer("index", 3, "number of the canvas", 0)
_KIND = flags.DEFINE_string("kind", "what", "what, where, count, colour ...")


def main() -> None:
  config = cli.read_config()
  source = plugins.source(config.data.source).make(config, _SPLIT.value)
  if (_OUT.value is None) == (_ALL.value is None):
    raise errors.GazeError("give --out=FILE, or --all=DIR")
  if _ALL.value is not None:
    write_all(source, pathlib.Path(_ALL.value))
    return
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


def write_all(source: samples.Source, folder: pathlib.Path) -> None:
  """Writes images/N.png, and the questions, once the pictures are there."""
  (folder / "images").mkdir(parents=True, exist_ok=True)
  asked = []
  for index in range(len(source)):
    sample = source.sample(index)
    name = f"images/{index}.png"
    Image.fromarray(sample.images[0]).save(folder / name)
    asked += [
      dict(
        id=f"{index} {number}",
        image=name,
        question=question.text,
        answer=question.answer,
        kind=question.kind,
      )
      for number, question in enumerate(sample.questions)
    ]
  text = json.dumps(asked, indent=1, ensure_ascii=False)
  whole_file.write(folder / "questions.json", text + "\n")
  print(f"wrote {len(asked)} questions about {len(source)} pictures")


if __name__ == "__main__":
  cli.main(main, config=True)
