"""A Google Cloud Storage in memory, on loopback.

As much of its JSON API as tensorstore, gcsfs and ArrayRecord ask for. Any
bucket is there. Objects appear whole or not at all, as in the real one.
"""

import base64
import contextlib
import dataclasses
import datetime
import hashlib
import http.server
import itertools
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"

Answer = tuple[int, dict[str, str], bytes]  # status, headers, content


@dataclasses.dataclass
class _Object:
  content: bytes
  generation: int
  updated: str


class Store:
  """The objects, and what was asked for.

  Attributes:
    objects: by bucket and name.
    requests: method, path and query of all, in order.
    broken: a pattern of requests that are answered by "forbidden".
  """

  def __init__(self):
    self.objects: dict[tuple[str, str], _Object] = {}
    self.requests: list[str] = []
    self.broken = "(?!)"
    self._uploads: dict[str, tuple[str, bytearray]] = {}
    self._numbers = itertools.count(1)
    self._lock = threading.Lock()

  def put(self, bucket: str, name: str, content: bytes) -> None:
    """Writes an object."""
    now = datetime.datetime.now(datetime.UTC).strftime(_TIME)
    number = next(self._numbers)
    self.objects[bucket, name] = _Object(content, number, now)

  def names(self, bucket: str) -> list[str]:
    """Of a bucket's objects."""
    return sorted(name for one, name in self.objects if one == bucket)

  def answer(
    self, method: str, address: str, headers: Any, body: bytes
  ) -> Answer:
    """What a request is answered."""
    url = urllib.parse.urlsplit(address)
    query = dict(urllib.parse.parse_qsl(url.query))
    patterns = (
      (r"/upload/storage/v1/b/([^/]+)/o", self._upload),
      (r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)", self._object),
      (r"/storage/v1/b/([^/]+)", self._bucket),
      (r"/storage/v1/b/([^/]+)/o/?", self._list),
      (r"/storage/v1/b/([^/]+)/o/([^/]+)/moveTo/o/([^/]+)", self._move),
    )
    with self._lock:
      self.requests.append(f"{method} {address}")
      if re.search(self.broken, self.requests[-1]):
        return _error(403, "forbidden")
      for pattern, handle in patterns:
        if match := re.fullmatch(pattern, url.path):
          names = map(urllib.parse.unquote, match.groups())
          return handle(method, query, headers, body, *names)
    return _error(501, f"{method} {url.path} is not served here")

  def _object(self, method, query, headers, body, bucket, name) -> Answer:
    if (bucket, name) not in self.objects:
      return _error(404, f"No such object: {name}")
    if method == "DELETE":
      del self.objects[bucket, name]
      return 204, {}, b""
    if query.get("alt") != "media":
      return _json(200, self._facts(bucket, name))
    one = self.objects[bucket, name]
    out = {"x-goog-generation": str(one.generation)}
    out["ETag"] = f'"{one.generation}"'
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("Range", ""))
    if not match:
      return 200, out, one.content
    first, last = match.groups()
    size = len(one.content)
    begin = int(first) if first else max(size - int(last), 0)
    end = min(int(last) + 1 if first and last else size, size)
    if begin >= size:
      return 416, {"Content-Range": f"bytes */{size}"}, b""
    out["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
    return 206, out, one.content[begin:end]

  def _bucket(self, method, query, headers, body, bucket) -> Answer:
    return _json(200, dict(kind="storage#bucket", id=bucket, name=bucket))

  def _list(self, method, query, headers, body, bucket) -> Answer:
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
    items, prefixes = [], []
    for name in self.names(bucket):
      rest = name.removeprefix(prefix)
      if not name.startswith(prefix) or name < query.get("startOffset", ""):
        continue
      if delimiter and delimiter in rest:
        prefixes.append(prefix + rest.split(delimiter)[0] + delimiter)
      else:
        items.append(self._facts(bucket, name))
    return _json(200, dict(items=items, prefixes=sorted(set(prefixes))))

  def _move(self, method, query, headers, body, bucket, name, new) -> Answer:
    if (bucket, name) not in self.objects:
      return _error(404, f"No such object: {name}")
    self.put(bucket, new, self.objects.pop((bucket, name)).content)
    return _json(200, self._facts(bucket, new))

  def _upload(self, method, query, headers, body, bucket) -> Answer:
    if query["uploadType"] == "media":
      return self._put_if(bucket, query["name"], query, body)
    if query["uploadType"] == "multipart":
      boundary = headers["Content-Type"].split("boundary=")[1].strip("'\"")
      _, facts, part, _ = body.split(b"--" + boundary.encode())
      name = json.loads(facts.split(b"\n\n", 1)[-1])["name"]
      content = part.split(b"\n\n", 1)[1].removesuffix(b"\n")
      return self._put_if(bucket, name, query, content)
    key = query.get("upload_id")
    if key is None:  # the first of several requests
      name = query.get("name") or json.loads(body)["name"]
      key = f"{bucket}/{next(self._numbers)}"
      self._uploads[key] = (name, bytearray())
      where = f"http://{headers['Host']}/upload/storage/v1/b/{bucket}/o"
      return 200, {"Location": f"{where}?{_query(query, key)}"}, b""
    name, content = self._uploads[key]
    content += body
    total = headers.get("Content-Range", "/*").rpartition("/")[2]
    if total == str(len(content)):
      del self._uploads[key]
      return self._put_if(bucket, name, query, bytes(content))
    return 308, {"Range": f"bytes=0-{len(content) - 1}"}, b""

  def _put_if(self, bucket, name, query, content) -> Answer:
    now = self.objects.get((bucket, name))
    wanted = query.get("ifGenerationMatch")
    if wanted and int(wanted) != (now.generation if now else 0):
      return _error(412, "generation")
    self.put(bucket, name, content)
    return _json(200, self._facts(bucket, name))

  def _facts(self, bucket: str, name: str) -> dict[str, str]:
    one = self.objects[bucket, name]
    md5 = hashlib.md5(one.content).digest()
    return dict(
      kind="storage#object",
      name=name,
      bucket=bucket,
      size=str(len(one.content)),
      md5Hash=base64.b64encode(md5).decode(),
      generation=str(one.generation),
      metageneration="1",
      timeCreated=one.updated,
      updated=one.updated,
    )


@contextlib.contextmanager
def serve(store: Store) -> Iterator[dict[str, str]]:
  """Serves; gives the environment that leads the libraries there."""

  class Handler(_Handler):
    pass

  Handler.store = store
  with _Server(("127.0.0.1", 0), Handler) as server:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
      yield dict(
        TENSORSTORE_GCS_HTTP_URL=address,
        STORAGE_EMULATOR_HOST=address,
        CLOUD_STORAGE_EMULATOR_ENDPOINT=address,
        GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT="false",  # would ask Google by gRPC
      )
    finally:
      server.shutdown()
      thread.join()


class _Server(http.server.ThreadingHTTPServer):
  daemon_threads = True

  def handle_error(self, request, client_address):
    """Clients that hang up are none of ours."""


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  store: Store

  def log_message(self, *args):
    pass

  def do_GET(self):
    status, headers, content = self.store.answer(
      self.command, self.path, self.headers, self._body()
    )
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name, value)
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    self.wfile.write(content)

  do_POST = do_PUT = do_DELETE = do_GET

  def _body(self) -> bytes:
    if self.headers.get("Transfer-Encoding") != "chunked":
      return self.rfile.read(int(self.headers.get("Content-Length") or 0))
    out = b""
    while size := int(self.rfile.readline().split(b";")[0], 16):
      out += self.rfile.read(size)
      self.rfile.readline()
    self.rfile.readline()
    return out


def _query(query: dict[str, str], key: str) -> str:
  return urllib.parse.urlencode(query | dict(upload_id=key))


def _json(status: int, value: Any) -> Answer:
  headers = {"Content-Type": "application/json"}
  return status, headers, json.dumps(value).encode()


def _error(status: int, why: str) -> Answer:
  return _json(status, dict(error=dict(code=status, message=why)))
