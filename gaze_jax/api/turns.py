"""The next turn of a conversation: what a context has of it, and what not."""

from gaze_jax import errors
from gaze_jax.data import messages
from gaze_jax.decode import context as context_lib

_NEW = -2  # an item of a conversation: a unit that is not read yet


class AskError(errors.GazeError):
  """A question that can't be asked; the message says what to change."""


def go_on(
  after: context_lib.Context | None,
  flat: messages.Flat,
  talk: messages.Conversation,
  new: set[messages.Place],
) -> tuple[context_lib.Context | None, messages.Flat]:
  """The context as far as a conversation goes on from it, and the rest.

  Args:
    after: what was read and said.
    flat: the whole conversation.
    talk: likewise.
    new: places of images that come with the question.

  Raises:
    AskError: an image that was read stands elsewhere now.
  """
  if after is None:
    return None, flat
  wanted: list[int] = []  # items of a context; each knows its place in `flat`
  at: list[int] = []
  for i, x in enumerate(flat):
    units = talk[x.message].parts[x.part].units if _is_place(x) else 0
    items = (
      [x]
      if not _is_place(x)
      else [_NEW if x in new else context_lib.UNIT] * units
    )
    wanted += items
    at += [i] * len(items)
  have = (*after.ids, *after.pending)
  same = min(messages.common_prefix([wanted, have]), len(wanted) - 1)
  if same < len(have):
    same = min(same, len(after.ids))
    if context_lib.UNIT in after.ids[same:]:
      raise AskError(
        "the chat template writes what stands before an image otherwise in this"
        " turn, and the image is read: ask with a new conversation"
      )
    after = context_lib.back(after, same)
  rest = flat[at[same] :]
  if any(_is_place(x) and x not in new for x in rest):
    raise AskError(
      "the chat template puts an image of an earlier turn elsewhere in this"
      " one: ask with a new conversation"
    )
  return after, rest


def _is_place(item: int | messages.Place) -> bool:
  return isinstance(item, messages.Place)
