"""Ask a trained or converted model, in a few lines.

  from gaze_jax import api

  model = api.load("out/quickstart/run")
  scene = model.encode_image("scene.png")         # read once: a value
  print(model.generate("what is at the top left?", scene).text)
  for text in model.stream("where is the fox?", scene, share=0.25):
    print(text, end="", flush=True)

A `Context` is what was read so far. It is never changed: ask it twice, keep it
on disk, or ask again from `answer.context`, which holds the answer as well.
"""

from gaze_jax.api.answer import Answer as Answer
from gaze_jax.api.chat import Chat as Chat
from gaze_jax.api.model import Model as Model
from gaze_jax.api.model import load as load
from gaze_jax.api.outputs import Outputs as Outputs
from gaze_jax.api.request import Request as Request
from gaze_jax.api.saved_context import load_context as load_context
from gaze_jax.api.saved_context import save_context as save_context
from gaze_jax.decode.context import Context as Context
from gaze_jax.decode.context import Limits as Limits
