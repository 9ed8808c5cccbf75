"""Templates in their sandbox: what they may do, and how they fail."""

import datetime

import pytest
import transformers
from transformers.utils import chat_template_utils

from gaze_jax.data import chat_template

TALK = [
  dict(role="user", content="hi <b>"),
  dict(role="assistant", content="\U0001f98a"),
]


def render(text, talk=TALK, ask=True, **variables):
  return chat_template.Template(text, "its/file.jinja", variables).render(
    talk, ask
  )


@pytest.mark.parametrize(
  "text",
  [
    "{{ messages | tojson }} {{ messages[1] | tojson(indent=1) }}",
    "{% for m in messages %}\n  {% if loop.last %}\n    {% break %}\n"
    "  {% endif %}\n  {{ m.content }}\n{% endfor %}",
    "{%- for m in messages -%} {{ loop.index0 }}/{{ loop.length }} "
    "{%- endfor %}",
    "{% generation %}\n a{{ messages[0].content }}\n{% endgeneration %}\nb",
    "{% set ns = namespace(n=1) %}{% for m in messages %}{% set ns.n = ns.n +"
    " 1 %}{% endfor %}{{ ns.n }}",
    "{% macro one(m) %}[{{ m.role ~ ':' ~ m.content }}]{% endmacro %}"
    "{{ one(messages[0]) }}{{ nothing }}{{ tools is none }}{{ bos_token }}",
    "{% for m in messages if m.role == 'none' %}{% else %}else{% endfor %}",
    "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}",
    "{{ (messages | map(attribute='role') | list)[::-1] | join(',') }}",
    "{{ '%s-%d' % ('a', 3) }}{{ 'ab' * 3 }}{{ 2 ** 10 }}",
    "{{ messages[0]['content'].split('<b>')[0].rstrip().upper() }}",
  ],
)
def test_a_template_says_what_it_says_in_transformers(text):
  want, _ = chat_template_utils.render_jinja_template(
    [TALK], chat_template=text, add_generation_prompt=True, bos_token="<s>"
  )
  assert render(text, bos_token="<s>") == want[0]


def test_the_day_is_today():
  assert transformers.__version__  # which has the same function
  now = datetime.datetime.now()
  assert render("{{ strftime_now('%Y') }}") in {
    f"{now.year}",
    f"{now.year + 1}",
  }


_GROWS = "{% macro f(a) %}{{ f(a + a) }}{% endmacro %}{{ f('xx') }}"
WRONG = {
  "{{ raise_exception('No system\n turn') }}": "assistant): No system turn",
  "{{ messages[7].content }}": "has no element 7",
  "{{ nothing.there }}": "'nothing' is undefined",
  "{{ 1 + 'a' }}": "TypeError: unsupported operand",
  "{{ ''.__class__.__mro__ }}": "is unsafe",
  "{% set x = messages.append(1) %}": "is unsafe",
  "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "RecursionError",
}
ENDLESS = {
  _GROWS: "more than 4000000 characters",
  "{% for i in range(1000000) %}x{% endfor %}": "Range too big",
  "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}"
  "{% endfor %}": "more than 1000000 steps",
  "{% for a in 'x' * 9999 %}{% for b in ('x' * 9999) | list %}{% endfor %}"
  "{% endfor %}": "more than 1000000 steps",
  "{{ 'x' * 10 ** 9 }}": "more than 4000000 characters",
  "{{ [1] * 10 ** 9 }}": "more than 4000000 characters",
  "{{ 9 ** 9 ** 9 }}": "too large a number",
  "{% for i in range(99999) %}{{ 'x' * 999 }}{% endfor %}": "than 4000000",
  "{% set n = namespace(a='xx') %}{% for i in range(90) %}{% set n.a = n.a ~"
  " n.a %}{% endfor %}": "more than 4000000 characters",
  "{% set n = namespace(a='xx') %}{% for i in range(90) %}{% set n.a = n.a +"
  " n.a %}{% endfor %}": "more than 4000000 characters",
}


@pytest.mark.parametrize("text, says", (WRONG | ENDLESS).items())
def test_what_a_template_can_not_do_is_one_line_with_its_file(text, says):
  with pytest.raises(chat_template.TemplateError) as caught:
    render(text)
  message = str(caught.value)
  assert says in message and message.startswith("its/file.jinja: ")
  assert "\n" not in message


@pytest.mark.parametrize(
  "text", ["{% for %}", "a\nb {{ 'c }}", "{% include 'x' %}{% nope %}"]
)
def test_what_is_no_template_is_one_line_with_its_place(text):
  with pytest.raises(chat_template.TemplateError) as caught:
    render(text)
  line = text.count("\n") + 1
  assert str(caught.value).startswith(f"its/file.jinja, line {line}: ")
  assert "\n" not in str(caught.value)


def test_one_conversation_is_no_other():
  """Steps and what is set are of one rendering."""
  template = chat_template.Template(
    "{% for i in range(60000) %}{% endfor %}{{ messages | length }}", "f", {}
  )
  for _ in range(20):
    assert template.render(TALK, True) == "2"
