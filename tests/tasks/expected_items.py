"""What a test says by hand of a task's items, and how that is held to them."""

from typing import NamedTuple

from gaze_jax.evals import scoring
from gaze_jax.evals.scoring import totals
from gaze_jax.tasks import media
from gaze_jax.tasks import registry
from gaze_jax.tasks import results
from gaze_jax.tasks import task as task_lib
from tests.tasks import published

MOST_PIXELS = 1000


class Expected(NamedTuple):
  """An item: its pictures' colours, its prompt, a right and a wrong answer."""

  id: str
  shown: str
  prompt: str
  right: str
  wrong: str


def of(name, root):
  """A task, and its items in a folder."""
  task = registry.TASKS[name]
  return task, task_lib.items(task, str(root))


def shown(item):
  """The colours of an item's pictures, in their order."""
  found = [media.picture(one, MOST_PIXELS) for one in item.images]
  return " ".join(map(published.colour_of, found))


def seen(task, item):
  """Pictures and prompt, by which an item is known in any layout."""
  return shown(item), task.prompt(item.fields)


def clusters(task, items):
  """The cluster of each item; of those that pictures tell, their colours."""
  if task.cluster:
    return [item.cluster for item in items]
  colours = {item.cluster: shown(item) for item in items}
  assert len(set(colours.values())) == len(colours), colours
  return [colours[item.cluster] for item in items]


def check(name, root, expected):
  """Holds all items of a task to what is expected of them."""
  task, items = of(name, root)
  order = [one.id for one in expected]
  items.sort(key=lambda item: order.index(item.id))
  found = [(one.id, *seen(task, one)) for one in items]
  assert found == [one[:3] for one in expected]
  for protocol in scoring.PROTOCOLS:
    for item, one in zip(items, expected, strict=True):
      assert value(task, item, one.wrong, protocol) == 0, one
      if not (protocol == "lmms" and unreadable(item)):
        assert value(task, item, one.right, protocol) == 1, one


def unreadable(item):
  """lmms-eval reads no decimals where their number is given as a float."""
  return isinstance(item.fields.get("precision"), float)


def value(task, item, text, protocol="default"):
  return results.verdict(task, item, text, protocol).value


def figures(name, root, expected, wrong=()):
  """The headline and all figures where items but those of these ids are right.

  Of items without a prediction there is no row.
  """
  task, items = of(name, root)
  answers = {one.id: one for one in expected}
  rows = []
  for item in items:
    one = answers[item.id]
    text = one.wrong if item.id in wrong else one.right
    found = results.verdict(task, item, text, "default")
    rows.append(totals.Row(item.fields, found))
  total = task.total or task.name
  out = totals.total(total, rows)
  return out[totals.TOTALS[total].headline], out
