"""Predictions and references, drawn at random, for lmms_parity.py."""

import random
import string
from collections.abc import Callable, Mapping
from typing import Any

Reference = Mapping[str, Any]

WORDS = """yes no Yes NO not Not Nothing yesterday eyes y n Y N. **Yes** other
A B C D E F a b c d (A) (B) (C) (D) (E) (a) (b) (z) A. B. C. D. A) C) D: B, 'A'
"B" DNA NBA Cab club panda Black the The an a A's couldnt hes let's y'allll
somebody'd twas dont its' zero one ten none None 5 5. 5.0 5% 5%% 0.05 1,000 1000
1_000 -3 +3 1e3 1E-2 3.14159 2.50 .5 0 -0 inf nan NaN 1/2 1/ /2 ; [x] {y} x=3 =
x-y x -y @ ` \\ ! ? , . .. : ; ' so is thus therefore final answer result could
be red Red RED a-b İ ß K ſo Ａ Ｂ （Ａ） ５ é 선택 답은 정답은
답: 答案是 选 答えは""".split()
PHRASES = (
  "z. " * 34,
  *("The answer is", "the answer is ", "The best answer is", "Answer:"),
  *("The correct option is", "Best option: (", "Best option:", "Best answer:"),
  *("I choose", "i select", "i pick", "My answer is", "my choice is", "option"),
  *("The choice is", "could be ", "so ", "is ", "therefore ", "the result = "),
  *("The answer is ", "I think it is", "**", "Option ", "answer is: ", "선택 "),
  *("a man is walking along the road and", "It can not be", "No, ", "Not "),
)
JOINS = (" ", " ", " ", "", ", ", ". ", ".", "\n", "\t", "; ", "/", " - ", "  ")
ALPHABET = "ABCDEabcdeno yes0123456789 .,()!?:;'\"%-=\n\t_*/　Ａ．（é"


def prediction(rng: random.Random, ref: Reference) -> str:
  pieces = (told(ref), told(ref), WORDS)
  one = lambda: rng.choices(rng.choices(pieces)[0])[0]
  kind = rng.randrange(8)
  if kind == 0:
    return one()
  if kind == 1:
    return mutated(rng, rng.choices(told(ref))[0])
  if kind == 2:
    return rng.choices(PHRASES)[0] + rng.choices(("", " "))[0] + one()
  if kind == 3:
    size = rng.randrange(12)
    return "".join(rng.choices(ALPHABET, k=size))
  if kind == 4:
    points = (rng.randrange(1, 0x3100) for _ in range(rng.randrange(8)))
    return "".join(map(chr, points)) + rng.choices(("", one()))[0]
  if kind == 5:
    return mutated(rng, one()) + rng.choices(JOINS)[0] + one()
  out = rng.choices(("", *PHRASES))[0]
  for _ in range(rng.randrange(12)):
    out += rng.choices(JOINS)[0] + rng.choices((one(), one(), *PHRASES))[0]
  return out


def mutated(rng: random.Random, text: str) -> str:
  at = rng.randrange(len(text) + 1)
  change = rng.randrange(7)
  if change == 0:
    return text[:at] + rng.choices(ALPHABET)[0] + text[at:]
  if change == 1:
    return text[:at] + text[at + 1 :]
  if change == 2:
    return text.swapcase()
  if change == 3:
    return text.upper()
  if change == 4:
    return text + rng.choices((".", "?", "!", ")", ":", " ", "..", ","))[0]
  if change == 5:
    return rng.choices(("(", " ", "'", '"', "**", ".", "the "))[0] + text
  return text.replace(" ", "  ")


def told(ref: Reference) -> list[str]:
  """What a reference holds, of which most of a prediction is made."""
  out = [str(ref.get("answer", "yes"))]
  out += ref.get("answers", [])
  out += ref.get("said", [])
  for key in ("options", "candidates", "choices"):
    for name, text in zip("ABCDEFGHI", ref.get(key) or [], strict=False):
      out += [text, name, f"({name})", f"{name}.", f"{name}. {text}"]
      out += [f"({name}) {text}", f"The answer is {name}.", f"{name}) {text}"]
  return out


# --- References.

SAID = """a red car|two|none|Dr. Who's|5.|12:30|1,000|don't|the end|coca-cola
|x / y|yes|10%|Ｃoca|no smoking|hello  world|1/2|2.5|A|b""".replace("\n", "")
SAID = [*SAID.split("|"), "two\nlines", "über uns"]
CHOICES = ["red", "a dog", "A cat sits on the mat", "0.5", "12", "Black", "DNA"]
CHOICES += ["f(x) = 2", "C talks to the dog", "red car", "B", "both a and b"]


def answers(rng: random.Random) -> dict:
  few = rng.sample(SAID, 3)
  return {"answers": rng.choices(few, k=10)}


def answer(rng: random.Random) -> dict:
  return {"answer": rng.choices(SAID)[0]}


def number(rng: random.Random) -> dict:
  golds = [*SAID, "0", "-4", "5%", "3.14", "1e3", "100", "nan", "x", "-0.0"]
  return {"answer": rng.choices(golds)[0]}


def letter_or_text(rng: random.Random) -> dict:
  return {"answer": rng.choices(("A", "B", "C", "D", *SAID))[0]}


def text_or_list(rng: random.Random) -> dict:
  gold = rng.choices((*SAID, "['red', '5']", "[1, 2"))[0]
  return {"answer": rng.choices((gold, rng.sample(SAID, 2)))[0]}


def ocr(rng: random.Random) -> dict:
  return {
    "answer": rng.choices((rng.choices(SAID)[0], rng.sample(SAID, 2)))[0],
    "dataset": rng.choices(("HME100k", "SVT"))[0],
    "question_type": "Regular Text Recognition",
  }


def yes_no(rng: random.Random) -> dict:
  return {"answer": rng.choices(("yes", "no"))[0]}


def pair(rng: random.Random) -> dict:
  return {
    "Index": 1,
    "Question": "Which?",
    "Options": "(a) Black (b) a dog",
    "Correct Answer": rng.choices(("(a)", "(b)"))[0],
    "choices": ["Black", "a dog"],  # for `told`
  }


def choices(rng: random.Random) -> dict:
  some = rng.sample(CHOICES, rng.randint(2, 5))
  return {"choices": some, "answer": rng.randrange(len(some))}


def letter(rng: random.Random) -> dict:
  return {"answer": rng.choices("ABCD")[0]}


def candidates(rng: random.Random) -> dict:
  some = rng.sample(CHOICES, 4)
  return {"candidates": some, "answer": rng.choices(some)[0]}


def options(rng: random.Random) -> dict:
  some = rng.sample(CHOICES, rng.randint(2, 9))
  return {"options": some, "answer": rng.choices(string.ascii_uppercase[:4])[0]}


def five(dataset: str) -> Callable[[random.Random], dict]:
  return lambda rng: {
    "options": rng.sample(CHOICES, 5),
    "answer": rng.randrange(5),
    "dataset": dataset,
  }


def problem(rng: random.Random) -> dict:
  kind = rng.choices(("text", "text", "integer", "float", "list"))[0]
  some = rng.sample(CHOICES, rng.randint(2, 6)) if kind == "text" else None
  golds = {"integer": "5", "float": "0.5", "list": "[1, 2]"}
  return {
    "question_type": "multi_choice" if some else "free_form",
    "answer_type": kind,
    "choices": some,
    "precision": rng.choices((1.0, 1))[0] if kind == "float" else None,
    "answer": rng.choices(some)[0] if some else golds[kind],
  }


def up_to_four(rng: random.Random) -> dict:
  some = rng.sample([*CHOICES, "banana nan"], rng.randint(2, 4))
  return {"options": some, "answer": rng.choices("ABCD"[: len(some)])[0]}


def bracketed(rng: random.Random) -> dict:
  some = rng.sample(CHOICES, rng.randint(2, 6))
  return {
    "choices": some,
    "answer": f"({rng.choices('ABCDEF'[: len(some)])[0]})",
  }


def line(rng: random.Random) -> dict:
  some = rng.sample(CHOICES, rng.randint(2, 4))
  lines = [f"{x}. {text}" for x, text in zip("ABCD", some, strict=False)]
  return {"options": some, "answer": rng.choices(lines)[0]}


def caption(rng: random.Random) -> dict:
  """Options as TempCompass writes them; `said` is for `told`."""
  kind = rng.choices(("Option", "Sentence", "Caption"))[0]
  names = rng.choices(("12", "AB", "123"))[0]
  some = rng.sample([*CHOICES, "so: it is", "x) so"], len(names))
  lines = [f"{kind} {x}: {text}." for x, text in zip(names, some, strict=True)]
  said = [*lines, *names, *(f"{kind} {x}" for x in names)]
  said += [f"{x}." for x in (*said, *some)]
  said += [f"({x}) {text}." for x, text in zip(names, some, strict=True)]
  question = "\n".join(["Which one is it?", *lines])
  return {"question": question, "answer": rng.choices(lines)[0], "said": said}
