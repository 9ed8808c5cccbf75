"""Answers a question about images or videos, and draws where the model looked.

python launch/generate.py --workdir=DIR --question=TEXT [--image=FILE,FILE]
    [--video=FILE] [--top_k=K | --share=0.25] [--out=gaze.png]
    [--animation=gaze.webp] [--html=gaze.html] [--json=FILE] [--layers=0,2]
    [--parallel.tensor=8] [--dtype=bfloat16] [--profile=FOLDER]
"""

from absl import flags

from gaze_jax import api
from gaze_jax import cli
from gaze_jax.runtime import processes
from gaze_jax.runtime import profiling

_WORKDIR = cli.define_path("workdir", "a directory with a model", bucket=True)
_QUESTION = flags.DEFINE_string("question", None, "the question")
_IMAGE = flags.DEFINE_list("image", [], "image files")
_VIDEO = flags.DEFINE_list("video", [], "video files")
_OUT = flags.DEFINE_string("out", "gaze.png", "the picture; --out= for none")
_ANIMATION = cli.define_path("animation", "a .gif or .webp to write")
_HTML = cli.define_path("html", "the viewer to write, a page")
_JSON = cli.define_path("json", "a file for answer and accounting")
_LAYERS = flags.DEFINE_list("layers", None, "layers drawn; default all")
_HEADS = flags.DEFINE_list("heads", None, "query heads drawn; default all")
_PROFILE = cli.define_file("profile", "a folder for a trace of the answer")
_OPTIONS = cli.define_options()
_PLACEMENT = cli.define_placement()
flags.mark_flags_as_required(["workdir", "question"])


def main() -> None:
  outputs = api.Outputs(
    picture=_OUT.value,
    animation=_ANIMATION.value,
    html=_HTML.value,
    json=_JSON.value,
    layers=cli.whole_numbers(_LAYERS),
    heads=cli.whole_numbers(_HEADS),
  )
  outputs.check_names()
  model = api.load(_WORKDIR.value, **_PLACEMENT())
  outputs.check_model(model)
  shown = dict(images=_IMAGE.value, videos=_VIDEO.value)
  with profiling.trace(_PROFILE.value):  # of the prompt as well
    stream = model.stream(_QUESTION.value, trace=True, **shown, **_OPTIONS())
    for text in stream:
      print(text, end="", flush=True)
  account = stream.answer.accounting()
  print(f"\n\n{account.text()}\n")
  if processes.is_first():
    for name in outputs.write(stream.answer, account):
      print(f"wrote {name}")


if __name__ == "__main__":
  cli.main(main, leave=processes.leave)
