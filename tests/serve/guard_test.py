"""Who may ask: keys, hosts, origins; and what needs none of them."""

import httpx2
import pytest

from gaze_jax import errors
from gaze_jax.serve import guard

KEY = "a-key-of-some-length"


@pytest.fixture(scope="module")
def guarded(serve):
  with serve(key=KEY, hosts=("gaze.example",)) as server:
    with httpx2.Client(base_url=server.url) as client:
      yield client


def code(response):
  return response.status_code, response.json()["error"]["code"]


def test_a_key_is_asked_for_but_by_health_and_the_page(guarded):
  missing = (401, "invalid_api_key")
  for path in ("/v1/models", "/metrics", "/v1/models/gaze", "/nothing"):
    assert code(guarded.get(path)) == missing
    for wrong in (KEY, f"Bearer {KEY}x", "Bearer", f"Basic {KEY}"):
      got = guarded.get(path, headers=dict(Authorization=wrong))
      assert code(got) == missing
      assert got.headers["www-authenticate"] == "Bearer"
  assert code(guarded.post("/v1/chat/completions")) == missing
  right = dict(Authorization=f"Bearer {KEY}")
  assert guarded.get("/v1/models", headers=right).status_code == 200
  assert guarded.get("/health").json() == dict(status="ok")
  page = guarded.get("/")
  assert page.status_code == 200
  assert "default-src 'none'" in page.headers["content-security-policy"]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", ""])
def test_a_name_that_is_not_ours_is_refused(guarded, host):
  """What a page sends whose name was turned to this machine."""
  for path in ("/health", "/", "/v1/models"):
    got = guarded.get(path, headers=dict(Host=host))
    assert code(got) == (403, "host_not_allowed")


@pytest.mark.parametrize(
  "host",
  ["localhost", "127.0.0.1:8000", "[::1]:8000", "[::1]", "gaze.example:80"],
)
def test_our_names_and_addresses_pass(guarded, host):
  assert guarded.get("/health", headers=dict(Host=host)).status_code == 200


def test_pages_of_other_origins_may_not_ask(guarded):
  ask = lambda origin: guarded.get("/health", headers=dict(Origin=origin))
  own = str(guarded.base_url).rstrip("/")
  assert ask(own).status_code == 200
  for origin in ("https://evil.example", "null", "http://127.0.0.1:1", ""):
    assert code(ask(origin)) == (403, "origin_not_allowed")
  got = ask(own)
  assert not any(name.startswith("access-control") for name in got.headers)
  asked = {"Access-Control-Request-Method": "POST", "Origin": own}
  assert guarded.options("/v1/models", headers=asked).status_code != 200


def test_a_key_is_needed_outside_loopback(tmp_path):
  for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
    assert guard.read_key(None, host) is None
  for host in ("0.0.0.0", "::", "192.168.0.3", "gaze.example"):
    with pytest.raises(errors.GazeError, match="a key is needed"):
      guard.read_key(None, host)
  file = tmp_path / "key"
  with pytest.raises(errors.GazeError, match="no such file"):
    guard.read_key(str(file), "0.0.0.0")
  for text in ("", "short", "two words of some length", "\u00e4" * 20):
    file.write_text(text)
    with pytest.raises(errors.GazeError, match="16 or more ASCII"):
      guard.read_key(str(file), "0.0.0.0")
  file.write_text(f"{KEY}\n")
  assert guard.read_key(str(file), "127.0.0.1") == KEY
