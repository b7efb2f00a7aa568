"""A Hugging Face Hub on the loopback interface, for real clients in other processes.

It speaks those endpoints that `huggingface_hub` and diffusers call to find, download, create and commit to model
repositories. Every file is committed as a regular one; there is no LFS.
"""

import base64
import hashlib
import json
import re
import secrets
import threading
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


TOKEN = "hf_of_the_test"


@dataclass
class File:
    """Bytes, or where they lie on the disk."""

    content: bytes | Path

    def read(self) -> bytes:
        return self.content.read_bytes() if isinstance(self.content, Path) else self.content

    @cached_property
    def oid(self) -> str:
        """The SHA-1 that Git gives the file."""
        data = self.read()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repository:
    """Commits, each a whole tree of files, and branches that point at them."""

    private: bool = False
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, File], branch: str = "main", message: str = "") -> str:
        commit = secrets.token_hex(20)
        self.commits[commit] = files
        self.branches[branch] = commit
        self.messages.append(message)
        return commit

    def resolve(self, revision: str) -> str | None:
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None


class Hub:
    """The server. As a context manager it runs in a thread.

    Attributes:
        repositories: By their ids, "owner/name".
        owners: Whose repositories the token `TOKEN` may write.
        requests: (method, path) of every request so far.
        refuse_commits: Whether commits fail, as on a full disk.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.owners = ["ada", "modular-diffdiff"]
        self.requests: list[tuple[str, str]] = []
        self.refuse_commits = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (_Handler,), {"hub": self}))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, repository: str, files: dict[str, bytes | Path]) -> str:
        """A new commit of these files on a repository's main branch."""
        repository = self.repositories.setdefault(repository, Repository())
        return repository.commit({name: File(content) for name, content in files.items()})

    def downloaded(self) -> set[str]:
        """The repositories from which any file was fetched."""
        fetched = (re.match(r"/([^/]+/[^/]+)/resolve/", path) for method, path in self.requests if method == "GET")
        return {match[1] for match in fetched if match}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet an answer: a second one waits 40 ms for the first's acknowledgement

    def log_message(self, *arguments) -> None:
        pass

    def answer(self, body: bytes | dict | list = b"", status: int = 200, **headers: str) -> None:
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, message: str, code: str = "") -> None:
        self.answer({"error": message}, status, X_Error_Code=code, X_Error_Message=message)

    def respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        for methods, pattern, action in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in methods.split():
                return action(self, body, **match.groupdict())
        return self.refuse(404, f"no such endpoint: {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_DELETE = respond  # noqa: N815 - the names that http.server calls

    @property
    def is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def may_write(self, repo: str) -> bool:
        return self.is_known and repo.split("/")[0] in self.hub.owners

    def found(self, repo: str, revision: str) -> tuple[Repository, str] | None:
        """The repository and the commit; where there is none, the refusal has been sent."""
        repository = self.hub.repositories.get(repo)
        if repository is None or (repository.private and not self.may_write(repo)):
            self.refuse(404 if self.is_known else 401, f"Repository {repo} not found", "RepoNotFound")
        elif (commit := repository.resolve(revision)) is None:
            self.refuse(404, f"Revision {revision} not found", "RevisionNotFound")
        else:
            return repository, commit
        return None

    def who_am_i(self, body: bytes) -> None:
        if not self.is_known:
            return self.refuse(401, "Invalid username or password.")
        user, *organizations = self.hub.owners
        return self.answer({"type": "user", "name": user, "orgs": [{"name": name} for name in organizations]})

    def validate_yaml(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        has_metadata = re.match(r"---\n.*?^license: .*?^---\n", content, re.DOTALL | re.MULTILINE)
        warnings = [] if has_metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        self.answer({"warnings": warnings, "errors": []})

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        if not self.may_write(repo):
            return self.refuse(403, f"You don't have the rights to create a model under {asked['organization']}")
        if repo in self.hub.repositories:
            return self.refuse(409, "You already created this model repo")
        private = asked.get("private") is True or asked.get("visibility") == "private"
        self.hub.repositories[repo] = Repository(private)
        self.hub.repositories[repo].commit({".gitattributes": File(b"")}, message="initial commit")
        return self.answer({"url": f"{self.hub.url}/{repo}"})

    def delete(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        if not self.may_write(repo):
            return self.refuse(403, "no rights")
        self.hub.repositories.pop(repo, None)
        return self.answer({})

    def info(self, body: bytes, repo: str, revision: str = "main") -> None:
        if found := self.found(repo, revision):
            repository, commit = found
            siblings = [{"rfilename": name} for name in repository.commits[commit]]
            self.answer({"id": repo, "sha": commit, "private": repository.private, "siblings": siblings})

    def tree(self, body: bytes, repo: str, revision: str, folder: str | None) -> None:
        found = self.found(repo, revision)
        if found is None:
            return
        files = found[0].commits[found[1]]
        entries = [
            {"type": "file", "path": name, "size": len(file.read()), "oid": file.oid}
            for name, file in files.items()
            if folder is None or name.startswith(f"{folder}/")
        ]
        if entries:
            self.answer(entries)
        else:
            self.refuse(404, f"{folder} does not exist", "EntryNotFound")

    def references(self, body: bytes, repo: str) -> None:
        if found := self.found(repo, "main"):
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
                for name, commit in found[0].branches.items()
            ]
            self.answer({"branches": branches, "tags": [], "converts": []})

    def branch(self, body: bytes, repo: str, branch: str) -> None:
        found = self.found(repo, "main")
        if found is None:
            return None
        repository, commit = found
        if not self.may_write(repo):
            return self.refuse(403, "no rights")
        if self.command == "DELETE":
            del repository.branches[branch]
        elif branch in repository.branches:
            return self.refuse(409, f"Reference already exists: refs/heads/{branch}")
        else:
            repository.branches[branch] = commit
        return self.answer({})

    def resolve(self, body: bytes, repo: str, revision: str, name: str) -> None:
        found = self.found(repo, revision)
        if found is None:
            return
        repository, commit = found
        file = repository.commits[commit].get(name)
        if file is None:
            self.refuse(404, f"{name} does not exist", "EntryNotFound")
        else:
            self.answer(file.read(), ETag=f'"{file.oid}"', X_Repo_Commit=commit)

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        found = self.found(repo, revision)
        if found is None:
            return None
        if not self.may_write(repo):
            return self.refuse(403, "no rights")
        there = found[0].commits[found[1]]
        answers = []
        for asked in json.loads(body)["files"]:
            name = asked["path"]
            oid = there[name].oid if name in there else None
            answers.append({"path": name, "uploadMode": "regular", "shouldIgnore": False, "oid": oid})
        return self.answer({"files": answers})

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        found = self.found(repo, revision)
        if found is None:
            return None
        if not self.may_write(repo):
            return self.refuse(403, "no rights")
        if self.hub.refuse_commits:
            return self.refuse(507, "Insufficient storage")
        repository, parent = found
        files, message = dict(repository.commits[parent]), ""
        for operation in map(json.loads, body.splitlines()):
            value = operation["value"]
            if operation["key"] == "header":
                message = value["summary"]
            elif operation["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]))
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
            else:
                return self.refuse(400, f"no such operation: {operation['key']}")
        commit = repository.commit(files, revision, message)
        return self.answer({"commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "commitOid": commit})


_REPO, _API = "(?P<repo>[^/]+/[^/]+)", "/api/(?:models|spaces)"
ROUTES = [
    ("GET", "/api/whoami-v2", _Handler.who_am_i),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("POST", "/api/repos/create", _Handler.create),
    ("DELETE", "/api/repos/delete", _Handler.delete),
    ("GET", f"{_API}/{_REPO}", _Handler.info),
    ("GET", f"{_API}/{_REPO}/revision/(?P<revision>.+)", _Handler.info),
    ("GET", f"{_API}/{_REPO}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", _Handler.tree),
    ("GET", f"{_API}/{_REPO}/refs", _Handler.references),
    ("POST DELETE", f"{_API}/{_REPO}/branch/(?P<branch>.+)", _Handler.branch),
    ("POST", f"{_API}/{_REPO}/preupload/(?P<revision>.+)", _Handler.preupload),
    ("POST", f"{_API}/{_REPO}/commit/(?P<revision>.+)", _Handler.commit),
    ("GET HEAD", f"(?:/spaces)?/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _Handler.resolve),
]
