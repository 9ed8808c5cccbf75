"""Questions of EmojiScenes, each with one answer that the picture decides."""

from collections.abc import Iterator, Sequence

import numpy as np

from gaze_jax.data import samples
from gaze_jax.demo import emoji
from gaze_jax.demo import scenes

# How often each kind is drawn, as long as a scene has questions of it left.
WEIGHTS = dict(
  what=0.30, where=0.34, count=0.14, colour=0.08, left_of=0.07, right_of=0.07
)
COUNT_WORDS = ("zero", "one", "two", "three")
# Share of the questions with a frequent answer that is asked at all, so that
# guessing the most frequent one blindly pays little.
KEPT = dict(zero=0.25, one=0.25, nothing=0.1)
_ABSENT = 2  # things that are not there, offered for counting to zero
_QUESTION_STREAM = 2

# Every wording, for the tokenizer's training text and for bounds on lengths.
TEMPLATES = dict(
  what="what is at the {place}?",
  where="where is the {name}?",
  count="how many {plural} are there?",
  colour="what colour is at the {place}?",
  left_of="what is left of the {name}?",
  right_of="what is right of the {name}?",
)

# Not among the templates: the shipped tokenizer is trained on those alone.
CAPTION = "describe the picture."


def caption(scene: scenes.Scene) -> samples.Question:
  """Names the things of a scene and their places, in reading order."""
  things = scene.things
  about = tuple(sorted(range(len(things)), key=lambda i: things[i].cell))
  names = [emoji.NAMED[things[i].thing].name for i in about]
  places = [scenes.PLACES[things[i].cell] for i in about]
  return samples.Question(CAPTION, _list(names, places), "caption", about)


def longest_captions() -> list[str]:
  """Captions of which one is as long as any can be, however it is counted."""
  number = scenes.MAX_THINGS
  return [
    _list([e.name] * number, [place] * number)
    for e in emoji.NAMED
    for place in scenes.PLACES
  ]


def _list(names: Sequence[str], places: Sequence[str]) -> str:
  pairs = zip(names, places, strict=True)
  return ", ".join(f"{name} at the {place}" for name, place in pairs)


def ask(
  scene: scenes.Scene,
  number: int,
  *,
  seed: int,
  split: str,
  index: int,
  epoch: int,
) -> tuple[samples.Question, ...]:
  """Draws `number` different questions, fewer where a scene has no more.

  A pure function of its arguments: an index gets others in each epoch. In the
  split held_out_pairs all but counts ask about a held-out pair.
  """
  rng = samples.generator(
    _QUESTION_STREAM, seed, scenes.SPLITS.index(split), index, epoch
  )
  candidates = list(every(scene, rng, held_out_only=split == "held_out_pairs"))
  order = rng.permutation(len(candidates))
  pools: dict[str, list[samples.Question]] = {k: [] for k in WEIGHTS}
  reserve = []
  lucks = rng.random(len(order)).tolist()
  for i, luck in zip(order.tolist(), lucks, strict=True):
    question = candidates[i]
    keep = luck < KEPT.get(question.answer, 1.0)
    (pools[question.kind] if keep else reserve).append(question)
  chosen: list[samples.Question] = []
  for luck in rng.random(number).tolist():
    kinds = [k for k in pools if pools[k]]
    if kinds:
      chosen.append(pools[_draw(kinds, luck)].pop())
  return tuple(chosen + reserve[: number - len(chosen)])


def _draw(kinds: list[str], luck: float) -> str:
  """The kind at a share `luck` of the way through the weights of `kinds`."""
  left = luck * sum(WEIGHTS[k] for k in kinds)
  for kind in kinds:
    left -= WEIGHTS[kind]
    if left < 0:
      return kind
  return kinds[-1]


def every(
  scene: scenes.Scene, rng: np.random.Generator, *, held_out_only: bool = False
) -> Iterator[samples.Question]:
  """Every question that has one clear answer in the scene."""
  things = scene.things
  total = [0] * len(emoji.NAMED)
  for p in things:
    total[p.thing] += 1
  for i, p in enumerate(things):
    named, place = emoji.NAMED[p.thing], scenes.PLACES[p.cell]
    if held_out_only and scenes.HELD_OUT[p.thing] != p.cell:
      continue
    yield _question("what", named.name, (i,), place=place)
    yield _question("colour", named.colour, (i,), place=place)
    if total[p.thing] == 1:
      yield _question("where", place, (i,), name=named.name)
      yield from _beside(scene, i)
  absent = [t for t in rng.permutation(len(total)).tolist() if not total[t]]
  for thing in sorted({p.thing for p in things}) + absent[:_ABSENT]:
    about = tuple(i for i, p in enumerate(things) if p.thing == thing)
    word = COUNT_WORDS[total[thing]]
    yield _question("count", word, about, plural=emoji.NAMED[thing].plural)


def _beside(scene: scenes.Scene, i: int) -> Iterator[samples.Question]:
  """Left and right of thing `i`: only where one can't argue about it.

  The neighbour is the thing in the next cell of the row, and it must have a
  name. "nothing" is the answer only when the row holds nothing further out.
  """
  things = scene.things
  me = things[i]
  row = {p.cell: p for p in scene.placed if p.cell // 3 == me.cell // 3}
  for kind, step in (("left_of", -1), ("right_of", 1)):
    outward = [me.cell + step * n for n in (1, 2)]
    outward = [row.get(c) for c in outward if c // 3 == me.cell // 3]
    name = emoji.NAMED[me.thing].name
    if not any(outward):
      yield _question(kind, "nothing", (i,), name=name)
    elif outward[0] and outward[0].thing >= 0:
      answer = emoji.NAMED[outward[0].thing].name
      yield _question(kind, answer, (things.index(outward[0]),), name=name)


def _question(
  kind: str, answer: str, about: tuple[int, ...], **words: str
) -> samples.Question:
  return samples.Question(TEMPLATES[kind].format(**words), answer, kind, about)


def wordings() -> dict[str, tuple[list[str], list[str]]]:
  """All questions and all answers there can be, by kind; bounds on lengths."""
  names = [e.name for e in emoji.NAMED]
  answers = dict(
    what=names,
    where=list(scenes.PLACES),
    count=list(COUNT_WORDS),
    colour=sorted({e.colour for e in emoji.NAMED}),
    left_of=[*names, "nothing"],
    right_of=[*names, "nothing"],
  )
  asked = {
    kind: sorted(
      {
        template.format(name=e.name, plural=e.plural, place=place)
        for e in emoji.NAMED
        for place in scenes.PLACES
      }
    )
    for kind, template in TEMPLATES.items()
  }
  return {kind: (asked[kind], answers[kind]) for kind in TEMPLATES}
