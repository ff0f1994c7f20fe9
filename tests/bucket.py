"""A stand-in for Cloud Storage on this machine: the part of its JSON API that our libraries use.

The real clients (gcsfs, TensorStore's `gcs` driver, google-cloud-storage) talk to it over HTTP. So
it covers that our addresses reach them; what they list, read, write and delete; generations and
conditions on them; and that no folder exists and nothing is renamed. It does not cover credentials,
retries after errors, limits of speed, and buckets with a hierarchical namespace.
"""

import contextlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator

import pytest
from etils.epath import gpath


class Bucket:
  """Objects by name, and what was asked for.

  Attributes:
    objects: {name: (contents, generation)}.
    read, written: names of objects whose contents were read, and of those written, in order.
    forbidden: names of objects that may not be read.
    full: whether nothing more may be written.
    parts: what has come of each upload in parts.
    environment: variables that lead the clients here.
  """

  def __init__(self, port: int):
    self.objects: dict[str, tuple[bytes, int]] = {}
    self.read: list[str] = []
    self.written: list[str] = []
    self.forbidden: set[str] = set()
    self.full = False
    self.parts: list[bytes] = []
    self.lock = threading.Lock()
    self._generation = 0
    host = f"http://localhost:{port}"
    self.environment = {
      "STORAGE_EMULATOR_HOST": host, "TENSORSTORE_GCS_HTTP_URL": host,
      "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token", "GOOGLE_CLOUD_PROJECT": "project",
      "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false", "EPATH_USE_TF": "false",
    }  # fmt: skip

  def put(self, name: str, contents: bytes) -> dict:
    self._generation += 1
    self.written.append(name)
    self.objects[name] = contents, self._generation
    return self.about(name)

  def about(self, name: str) -> dict:
    contents, generation = self.objects[name]
    return {
      "kind": "storage#object", "name": name, "bucket": "mine", "size": str(len(contents)),
      "generation": str(generation), "metageneration": "1",
      "updated": "2026-01-01T00:00:00.000Z", "timeCreated": "2026-01-01T00:00:00.000Z",
    }  # fmt: skip

  def names(self, prefix: str = "") -> list[str]:
    return sorted(name for name in self.objects if name.startswith(prefix))


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  wbufsize = -1  # head and body in one packet: between two the clients' acknowledgement is awaited
  bucket: Bucket

  def log_message(self, *_) -> None:
    pass

  def answer(self, status: int, body: bytes | dict = b"", **headers: str) -> None:
    body = json.dumps(body).encode() if isinstance(body, dict) else body
    self.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
      self.send_header(name.replace("_", "-"), value)
    self.end_headers()
    self.wfile.write(body)

  def missing(self, name: str) -> None:
    error = {"code": 404, "message": f"No such object: {name}", "errors": [{"reason": "notFound"}]}
    self.answer(404, {"error": error})

  def asked(self) -> tuple[list[str], dict[str, str]]:
    """The parts of the path, unquoted after splitting, and the query."""
    parsed = urllib.parse.urlsplit(self.path)
    parts = [urllib.parse.unquote(part) for part in parsed.path.strip("/").split("/")]
    query = urllib.parse.parse_qsl(parsed.query, keep_blank_values=True)
    return parts[parts.index("b") + 2 :], dict(query)

  def holds(self, name: str, query: dict[str, str]) -> bool:
    """Whether the request's condition on the object's generation is met."""
    _, generation = self.bucket.objects.get(name, (b"", 0))
    return int(query.get("ifGenerationMatch", generation)) == generation

  def do_GET(self) -> None:
    parts, query = self.asked()
    with self.bucket.lock:
      if not parts:
        self.answer(200, {"kind": "storage#bucket", "name": "mine", "location": "US"})
      elif len(parts) == 1:
        self.listed(query)
      elif (name := "/".join(parts[1:])) not in self.bucket.objects:
        self.missing(name)
      elif name in self.bucket.forbidden:
        self.answer(403, {"error": {"code": 403, "message": f"{name} may not be read."}})
      elif query.get("alt") != "media":
        self.answer(200, self.bucket.about(name))
      else:
        self.contents(name, query)

  def listed(self, query: dict[str, str]) -> None:
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
    items, folders = [], set()
    for name in self.bucket.names(prefix):
      rest, inside = name[len(prefix) :], name >= query.get("startOffset", "")
      if not inside or ("endOffset" in query and name >= query["endOffset"]):
        continue
      if delimiter and delimiter in rest:
        folders.add(prefix + rest.split(delimiter)[0] + delimiter)
      else:
        items.append(self.bucket.about(name))
    self.answer(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)})

  def contents(self, name: str, query: dict[str, str]) -> None:
    contents, generation = self.bucket.objects[name]
    self.bucket.read.append(name)
    headers = {"x_goog_generation": str(generation), "x_goog_metageneration": "1"}
    if query.get("ifGenerationNotMatch") == str(generation):
      self.answer(304, **headers)
    elif not self.holds(name, query):
      self.answer(412, **headers)
    elif span := self.headers.get("Range"):
      first, _, last = span.removeprefix("bytes=").partition("-")
      start = int(first) if first else len(contents) - int(last)
      stop = min(int(last) + 1, len(contents)) if first and last else len(contents)
      if start >= len(contents):
        self.answer(416, **headers)
      else:
        place = f"bytes {start}-{stop - 1}/{len(contents)}"
        self.answer(206, contents[start:stop], Content_Range=place, **headers)
    else:
      self.answer(200, contents, **headers)

  def do_POST(self) -> None:
    _, query = self.asked()
    body = self.rfile.read(int(self.headers["Content-Length"]))
    if query["uploadType"] == "multipart":
      _, about, body = body.split(b"\n\n", 2)
      query["name"] = json.loads(about.split(b"\n--")[0])["name"]
      body = body.rpartition(b"\n--")[0]
    with self.bucket.lock:
      if self.bucket.full:
        self.answer(403, {"error": {"code": 403, "message": "The quota is used up."}})
      elif query["uploadType"] == "resumable":
        self.part(query, body)
      elif self.holds(query["name"], query):
        self.answer(200, self.bucket.put(query["name"], body))
      else:
        self.answer(412)

  def part(self, query: dict[str, str], body: bytes) -> None:
    """Begins an upload in parts, or takes one: "bytes 0-99/*", and at last ".../100" or "*/100"."""
    if "upload_id" not in query:
      self.bucket.parts.append(b"")
      place = f"{self.path}&upload_id={len(self.bucket.parts) - 1}"
      self.answer(200, Location=f"http://{self.headers['Host']}{place}")
      return
    number = int(query["upload_id"])
    self.bucket.parts[number] += body
    have = len(self.bucket.parts[number])
    if self.headers["Content-Range"].endswith(f"/{have}"):
      self.answer(200, self.bucket.put(query["name"], self.bucket.parts[number]))
    else:
      self.answer(308, Range=f"bytes=0-{have - 1}")

  def do_DELETE(self) -> None:
    parts, query = self.asked()
    name = "/".join(parts[1:])
    with self.bucket.lock:
      if name not in self.bucket.objects:
        self.missing(name)
      elif self.holds(name, query):
        del self.bucket.objects[name]
        self.answer(204)
      else:
        self.answer(412)


@contextlib.contextmanager
def serving() -> Iterator[Bucket]:
  """The bucket gs://mine, for processes that have its `environment`."""
  handler = type("Handler", (_Handler,), {})
  server = http.server.ThreadingHTTPServer(("localhost", 0), handler)
  handler.bucket = Bucket(server.server_address[1])
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    yield handler.bucket
  finally:
    server.shutdown()
    server.server_close()


@pytest.fixture
def fixture(monkeypatch):
  """An empty bucket gs://mine that this process reaches: `bucket = tests.bucket.fixture`."""
  with serving() as bucket:
    for name, value in bucket.environment.items():
      monkeypatch.setenv(name, value)
    gpath._is_tf_installed.cache_clear()  # etils looks once in a process
    yield bucket
  gpath._is_tf_installed.cache_clear()
