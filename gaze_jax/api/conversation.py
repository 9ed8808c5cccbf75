"""A request as the next turn of a conversation: what is to be read of it.

The whole conversation is rendered, as the chat template has it now. What the
context holds of it stays; text from where the two differ is read anew.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.api import media
from gaze_jax.api import request as request_lib
from gaze_jax.data import messages
from gaze_jax.data import packing
from gaze_jax.data import prompts
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.data import units
from gaze_jax.decode import context as context_lib
from gaze_jax.view import words

RequestError = request_lib.RequestError

_NEW = -2  # an item of a conversation: a unit that is not read yet


def next_turn(
  request: request_lib.Request,
  config: config_lib.Config,
  tokenizer: tokenizer_lib.Tokenizer,
) -> tuple[context_lib.Context, types.Batch]:
  """The context that a request is read after, and the row that is read.

  The context has the views and the conversation of the request already.

  Raises:
    RequestError: more or fewer `<image>` or `<video>` than images and videos,
      or the template writes otherwise what stands before an image.
    errors.GazeError: an image or a video can't be used.
  """
  if request.talk:
    ((context, batch),) = _whole(request, config, tokenizer, cut=False)
    empty = context_lib.empty(config.model)
    return dataclasses.replace(context, cache=empty.cache), batch
  context = request.after or context_lib.empty(config.model)
  talk = context.talk
  if context.cache is None:
    raise RequestError(
      "the context is of generate_many and holds no keys and values: ask with"
      " generate what another question is to follow"
    )
  if context.length and not talk:
    raise RequestError(
      "the context holds a prompt and no conversation, so a question can't"
      " follow it"
    )
  message = messages.marked(_with_marks(request))
  kinds = [part.kind for part in message.parts if part.kind != messages.TEXT]
  given = {
    messages.IMAGE: media.see(config, images=request.images),
    messages.VIDEO: media.see(
      config, videos=request.videos, frames=request.frames
    ),
  }
  seen = [given[kind].pop(0) for kind in kinds]
  shown = iter(_shown(kinds, seen))
  parts = [p if p.kind == messages.TEXT else next(shown) for p in message.parts]
  first = 0
  if talk and talk[-1].role == messages.USER:  # images that were read already
    parts, first = [*talk[-1].parts, *parts], len(talk[-1].parts)
    talk = talk[:-1]
  message = messages.Message(messages.USER, tuple(parts))
  talk = (*messages.system(request.system), *talk, message)
  last = len(talk) - 1
  new = [p for p in messages.places(talk) if p >= (last, first)]
  asked = tokenizer.chat.ask(talk, request.begins)
  context, flat = _unread(context, asked, talk, set(new))
  news = dict(zip(new, seen, strict=True))
  return _laid_out(config, context, flat, news, talk)


def in_parts(
  request: request_lib.Request,
  config: config_lib.Config,
  tokenizer: tokenizer_lib.Tokenizer,
) -> list[tuple[context_lib.Context, types.Batch]]:
  """`next_turn` of a whole conversation, cut behind what each message shows.

  Args:
    request: with `talk`.
    config: of the model.
    tokenizer: the model's.

  Returns:
    What each part is read after, a context without a cache, and its row. Only
    the last of them shows nothing.

  Raises:
    errors.GazeError: as `next_turn`.
  """
  return _whole(request, config, tokenizer, cut=True)


def opening(
  request: request_lib.Request,
  config: config_lib.Config,
  tokenizer: tokenizer_lib.Tokenizer,
) -> tuple[context_lib.Context, types.Batch]:
  """`next_turn` of the images and videos alone, whatever will be asked.

  Args:
    request: for what it shows, and for its system text.
    config: of the model.
    tokenizer: the model's.

  Raises:
    RequestError: the chat template puts images behind a question.
    errors.GazeError: an image or a video can't be used.
  """
  images, videos = request.images, request.videos
  seen = media.see(config, images, videos, request.frames)
  kinds = [messages.IMAGE] * len(images) + [messages.VIDEO] * len(videos)
  shown = messages.Message(messages.USER, tuple(_shown(kinds, seen)))
  talk = (*messages.system(request.system), shown)
  flat = tokenizer.chat.before_question(talk)
  places = [i for i, x in enumerate(flat) if isinstance(x, messages.Place)]
  if len(places) < len(seen):
    raise RequestError(
      "the chat template puts images behind the question, so they can't be read"
      " before it: give them with the question"
    )
  flat = flat[: places[-1] + 1] if places else flat
  news = dict(zip(messages.places(talk), seen, strict=True))
  context = context_lib.empty(config.model)
  return _laid_out(config, context, flat, news, talk)


def _whole(
  request: request_lib.Request,
  config: config_lib.Config,
  tokenizer: tokenizer_lib.Tokenizer,
  *,
  cut: bool,
) -> list[tuple[context_lib.Context, types.Batch]]:
  """The rows of `Request.talk`, one or more; contexts have no cache."""
  images, videos = iter(request.images), iter(request.videos)
  talk, news = [], {}
  for number, message in enumerate(request.talk):
    of = lambda kind, rest, m=message: [
      next(rest) for part in m.parts if part.kind == kind
    ]
    # Of one message: with AnyRes it matters how many they are.
    pictures = media.see(config, images=of(messages.IMAGE, images))
    clips = media.see(
      config, videos=of(messages.VIDEO, videos), frames=request.frames
    )
    given = {messages.IMAGE: pictures, messages.VIDEO: clips}
    parts = list(message.parts)
    for i, part in enumerate(parts):
      if part.kind not in messages.TEXTS:
        seen = given[part.kind].pop(0)
        news[messages.Place(number, i)] = seen
        parts[i] = part._replace(units=len(seen[0].units))
    talk.append(message._replace(parts=tuple(parts)))
  whole, flat = tuple(talk), tokenizer.chat.ask(tuple(talk), request.begins)
  context, out = context_lib.Context(None), []
  for part in _parts(flat, request) if cut else [flat]:
    before, batch = _laid_out(config, context, part, news, whole)
    out.append((before, batch))
    context = context_lib.extended(before, batch)
  return out


def _parts(
  flat: messages.Flat, request: request_lib.Request
) -> list[messages.Flat]:
  """A conversation, cut behind the last image of each message.

  Where regions are drawn at random, text that has images in sight is of the
  request alone, and so is what follows it.
  """
  places = [i for i, x in enumerate(flat) if isinstance(x, messages.Place)]
  last = {flat[i].message: i + 1 for i in places}
  cuts = [*last.values()]
  if request.regions != "scores":
    cuts = [at for at in cuts if at - places[0] == places.index(at - 1) + 1]
  ends = [0, *cuts, len(flat)]
  return [flat[a:b] for a, b in itertools.pairwise(ends)]


def _with_marks(request: request_lib.Request) -> str:
  """The question with a mark for each image and video."""
  question, missing = request.question, ""
  given = {"<image>": len(request.images), "<video>": len(request.videos)}
  for mark, count in given.items():
    written = question.count(mark)
    if not written:
      missing += mark * count
    elif written != count:
      raise RequestError(
        f"the question names {written} {mark}, and {count} are given: give one"
        " for each, in order, or leave the marks out"
      )
  return missing + question


def _shown(
  kinds: Sequence[str], seen: Sequence[media.Seen]
) -> list[messages.Part]:
  """Parts of a message, which know how many units they became."""
  return [
    messages.Part(kind, units=len(one.units))
    for kind, (one, _) in zip(kinds, seen, strict=True)
  ]


def _unread(
  context: context_lib.Context,
  flat: messages.Flat,
  talk: messages.Conversation,
  new: set[messages.Place],
) -> tuple[context_lib.Context, messages.Flat]:
  """The context as far as a conversation begins with it, and the rest.

  Args:
    context: what was read and generated.
    flat: the whole conversation.
    talk: likewise.
    new: places of images that come with the question.

  Raises:
    RequestError: an image that was read stands elsewhere now.
  """
  wanted: list[int] = []  # items of a context; each knows its place in `flat`
  at: list[int] = []
  for i, x in enumerate(flat):
    items = [x]
    if isinstance(x, messages.Place):
      count = talk[x.message].parts[x.part].units
      items = [_NEW if x in new else context_lib.UNIT] * count
    wanted += items
    at += [i] * len(items)
  have = (*context.ids, *context.pending)
  same = min(messages.common_prefix([wanted, have]), len(wanted) - 1)
  if same < len(have):
    same = min(same, len(context.ids))
    if context_lib.UNIT in context.ids[same:]:
      raise RequestError(
        "the chat template writes what stands before an image otherwise in this"
        " turn, and the image is read: ask with a new conversation"
      )
    context = context_lib.truncated(context, same)
  rest = flat[at[same] :]
  if any(isinstance(x, messages.Place) and x not in new for x in rest):
    raise RequestError(
      "the chat template puts an image of an earlier turn elsewhere in this"
      " one: ask with a new conversation"
    )
  return context, rest


def _laid_out(
  config: config_lib.Config,
  context: context_lib.Context,
  flat: messages.Flat,
  new: Mapping[messages.Place, media.Seen],
  talk: messages.Conversation,
) -> tuple[context_lib.Context, types.Batch]:
  """Ids, and the images at their places among them, as a row."""
  seen = [new[x] for x in flat if isinstance(x, messages.Place)]
  parts = packing.parts_of(flat, [one.units for one, _ in seen])
  pixels = units.join([one.pixels for one, _ in seen], config.model)
  prompt = prompts.Prompt(tuple(parts), pixels)
  batch = prompts.batch([prompt], config.model)
  views = [view for _, shown in seen for view in shown]
  layout, before = batch.layout, len(context.sizes)
  unit = np.where(layout.region[0] >= 0, layout.unit[0], -1)
  numbered = []
  for i, view in enumerate(views):
    first = before + layout.region[0][unit == i].min()
    regions = np.where(view.regions < 0, -1, view.regions + first)
    numbered.append(words.View(view.picture, regions))
  views = (*context.views, *numbered)
  return dataclasses.replace(context, views=views, talk=talk), batch
