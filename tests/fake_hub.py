"""A Hub on the loopback, for tests: what huggingface_hub asks of the real one, without Xet.

Repositories are lists of commits in memory; whether a file is regular or LFS is decided as there:
anything that is not text, or is larger than 10 MB, is LFS. `faults` breaks requests.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKENS = {"hf_writer": ("ann", "write"), "hf_reader": ("ann", "read"), "hf_other": ("bob", "write")}
REGULAR_BYTES = 10_000_000
API = r"/api/(model|space|dataset)s/([\w.-]+/[\w.-]+)"


def git_hash(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def is_lfs(content):
    try:
        return b"\0" in content or len(content) > REGULAR_BYTES or not content.decode()
    except UnicodeDecodeError:
        return True


class Repository:
    """A list of (oid, {path: content}); the Hub's first commit has .gitattributes."""

    def __init__(self, owner, request):
        self.owner, self.request, self.commits = owner, request, []
        self.commit({".gitattributes": b"*.npy filter=lfs diff=lfs merge=lfs -text\n"})

    def commit(self, files):
        oid = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits.append((oid, files))
        return oid

    def at(self, revision):
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0].startswith(revision)), None)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, content=b"", **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers["Content_Type"] = "application/json"
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status, message, code=None):
        more = {"X_Error_Message": message} | ({"X_Error_Code": code} if code else {})
        self.answer(status, {"error": message}, **more)

    @property
    def user(self):
        return TOKENS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def handle_request(self):
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.requests.append(f"{self.command} {path}")
        for pattern, fault in list(hub.faults.items()):
            if re.search(pattern, hub.requests[-1]):
                if fault == "close":
                    self.close_connection = True
                    self.connection.close()
                    return
                self.refuse(*fault)
                return
        for pattern, method in ROUTES:
            if found := re.fullmatch(pattern, hub.requests[-1]):
                method(self, *found.groups(), body=body)
                return
        self.refuse(404, f"the fake Hub has no {hub.requests[-1]}")

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    # --- accounts and repositories

    def whoami(self, body):
        if not self.user:
            self.refuse(401, "Invalid username or password.")
            return
        name, role = self.user
        token = {"accessToken": {"displayName": "t", "role": role}}
        self.answer(200, {"type": "user", "name": name, "orgs": [], "auth": token})

    def create(self, body):
        request, hub = json.loads(body), self.server.hub
        owner = request["organization"] or (self.user or [""])[0]
        key = request.get("type", "model"), f"{owner}/{request['name']}"
        if not self.user:
            self.refuse(401, "Invalid username or password.")
        elif key in hub.repositories and self.user[0] == owner:
            self.answer(409, {"error": "You already created this repo"} | self.address(key))
        elif self.user != (owner, "write"):
            self.refuse(403, "You don't have the rights to create a repo there")
        else:
            hub.repositories[key] = Repository(owner, request)
            self.answer(200, self.address(key))

    def address(self, key):
        prefix = "" if key[0] == "model" else f"{key[0]}s/"
        return {"url": f"{self.server.hub.url}/{prefix}{key[1]}", "name": key[1]}

    def find(self, kind, name, revision="main"):
        """-> (repository, commit's oid, its files), or None after an answer."""
        repository = self.server.hub.repositories.get((kind or "model", name))
        if not repository or (
            repository.request.get("visibility") == "private"
            and (self.user or [""])[0] != repository.owner
        ):
            self.refuse(404 if self.user else 401, "Repository not found", "RepoNotFound")
        elif not (commit := repository.at(revision)):
            self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        else:
            return repository, *commit
        return None

    def find_writable(self, kind, name):
        found = self.find(kind, name)
        if found and self.user != (found[0].owner, "write"):
            self.refuse(403, "You need write access to this repository")
            return None
        return found

    def info(self, kind, name, revision=None, body=b""):
        if found := self.find(kind, name, revision or "main"):
            _, oid, files = found
            siblings = [{"rfilename": path} for path in files]
            about = {"id": name, "modelId": name, "sha": oid, "private": False, "tags": []}
            self.answer(200, about | {"siblings": siblings, "downloads": 0, "likes": 0})

    def tree(self, kind, name, revision, body):
        if found := self.find(kind, name, revision):
            entries = []
            for path, content in found[2].items():
                entry = {"type": "file", "path": path, "size": len(content)}
                entry["oid"] = git_hash(content)
                if is_lfs(content):
                    lfs = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
                    entry["lfs"] = lfs
                entries.append(entry)
            self.answer(200, entries)

    # --- uploads

    def validate(self, body):
        request = json.loads(body)
        front = re.match(r"---\n(.*?)\n---\n", request["content"], re.DOTALL)
        if request["repoType"] == "space" and not (front and "sdk: " in front[1]):
            self.answer(400, {"errors": [{"message": '"sdk" is required'}], "warnings": []})
            return
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, kind, name, revision, body):
        if not (found := self.find_writable(kind, name)):
            return
        answers = []
        for file in json.loads(body)["files"]:
            there = found[2].get(file["path"])
            sample = base64.b64decode(file["sample"])
            lfs = is_lfs(sample) or file["size"] > REGULAR_BYTES
            lfs = lfs or file["path"].endswith((".safetensors", ".npy", ".wav", ".png"))
            oid = None if there is None else (sha256 if lfs else git_hash)(there)
            mode = {"uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            answers.append({"path": file["path"], "oid": oid} | mode)
        self.answer(200, {"files": answers})

    def batch(self, kind, name, body):
        if not self.find_writable(kind, name):
            return
        hub, objects = self.server.hub, []
        for entry in json.loads(body)["objects"]:
            entry = {"oid": entry["oid"], "size": entry["size"]}
            if entry["oid"] not in hub.large:
                links = {"upload": "storage", "verify": "verify"}
                entry["actions"] = {
                    action: {"href": f"{hub.url}/{path}/{entry['oid']}"}
                    for action, path in links.items()
                }
            objects.append(entry)
        self.answer(200, {"transfer": "basic", "objects": objects})

    def store(self, oid, body):
        if sha256(body) != oid:
            self.refuse(400, "the content has another hash")
            return
        self.server.hub.large[oid] = body
        self.answer(200)

    def verify(self, oid, body):
        self.answer(200 if oid in self.server.hub.large else 404, {})

    def commit(self, kind, name, revision, body):
        if not (found := self.find_writable(kind, name)):
            return
        repository, _, files = found
        files = dict(files)
        for line in map(json.loads, body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "file":
                content = base64.b64decode(value["content"])
                if b"\0" in content:
                    self.refuse(400, "Your push was rejected because it contains binary files")
                    return
                files[value["path"]] = content
            elif key == "lfsFile":
                if value["oid"] not in self.server.hub.large:
                    self.refuse(400, f"{value['path']}: the LFS object has not been uploaded")
                    return
                files[value["path"]] = self.server.hub.large[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        oid = repository.commit(files)
        url = f"{self.server.hub.url}/{name}/commit/{oid}"
        self.answer(200, {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    # --- downloads

    def resolve(self, kind, name, revision, path, body):
        if not (found := self.find(kind, name, revision)):
            return
        _, oid, files = found
        if path not in files:
            self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=oid)
            return
        content, headers = files[path], {"X_Repo_Commit": oid, "ETag": f'"{git_hash(files[path])}"'}
        if is_lfs(content):  # a redirect to the storage, as from the real one
            large = {"X_Linked_Etag": f'"{sha256(content)}"', "X_Linked_Size": str(len(content))}
            self.server.hub.large[sha256(content)] = content
            storage = self.server.hub.url.replace(
                "127.0.0.1", "localhost"
            )  # another host, as there
            where = f"{storage}/storage/{sha256(content)}"
            self.answer(302, Location=where, **headers, **large)
            return
        self.answer(200, content, **headers)

    def load(self, oid, body):
        content = self.server.hub.large[oid]
        self.answer(200, content, ETag=f'"{oid}"')


ROUTES = [
    ("GET /api/whoami-v2", Handler.whoami),
    ("POST /api/repos/create", Handler.create),
    ("POST /api/validate-yaml", Handler.validate),
    (f"POST {API}/preupload/([^/]+)", Handler.preupload),
    (f"POST {API}/commit/([^/]+)", Handler.commit),
    (f"GET {API}/tree/([^/]+)/?", Handler.tree),
    (f"GET {API}(?:/revision/([^/]+))?", Handler.info),
    (r"POST /(?:(space|dataset)s/)?([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT /storage/(.+)", Handler.store),
    ("(?:GET|HEAD) /storage/(.+)", Handler.load),
    ("POST /verify/(.+)", Handler.verify),
    (
        r"(?:GET|HEAD) /(?:(space|dataset)s/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)",
        Handler.resolve,
    ),
]


class FakeHub:
    """Use as a context: `url`, `repositories`, `large` (LFS objects), `requests`, `faults`.

    faults: {regex on "METHOD path": "close", or (status, message)}.
    """

    def __enter__(self):
        self.repositories, self.large, self.requests, self.faults = {}, {}, [], {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def files(self, kind, name):
        """The newest files of a repository: path -> content."""
        return self.repositories[kind, name].commits[-1][1]
