"""Who is there, which repositories, what is in them: all that loading asks for."""

import re
from typing import Any
from urllib.parse import parse_qs, quote

from .repos import Commit, File, HubError
from .routes import Answer, Call, route

DATE = "2026-01-01T00:00:00.000Z"


@route("GET", "/api/whoami-v2")
def whoami(call: Call) -> Answer:
    user = call.user
    if user is None:
        raise HubError(401, message="Invalid username or password.")
    token = {"displayName": "test", "role": "write" if user.write else "read"}
    return Answer.json({"type": "user", "name": user.name, "fullname": user.name, "orgs": [], "auth": {"type": "access_token", "accessToken": token}})


@route("GET", "API/auth-check(?P<write>/write)?")
def auth_check(call: Call) -> Answer:
    call.repo(write=bool(call.names["write"]))
    return Answer.json({})


@route("GET", "API(/revision/REV)?")
def info(call: Call) -> Answer:
    repo, commit = call.repo(), call.commit()
    siblings = [{"rfilename": path, "size": len(file.data), "blobId": file.blob} for path, file in commit.files.items()]
    facts = {"id": repo.id, "author": repo.id.split("/")[0], "private": repo.private, "gated": False, "disabled": False, "tags": []}
    return Answer.json({**facts, "sha": commit.id, "lastModified": DATE, "createdAt": DATE, "downloads": 0, "likes": 0, "siblings": siblings})


@route("GET", "API/refs")
def refs(call: Call) -> Answer:
    repo = call.repo()
    kinds = {"branches": ("heads", repo.branches), "tags": ("tags", repo.tags), "converts": ("convert", {})}
    return Answer.json({
        kind: [{"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": commit} for name, commit in found.items()]
        for kind, (folder, found) in kinds.items()
    })  # fmt: skip


@route("GET", "API/commits/REV")
def commits(call: Call) -> Answer:
    found = call.repo().history(call.names["rev"])
    return Answer.json([{"id": one.id, "title": one.title, "message": "", "date": DATE, "authors": [{"user": "user"}]} for one in found])


def _entry(path: str, file: File) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(file.data), "oid": file.blob, "lastCommit": {"id": "0" * 40, "title": "", "date": DATE}}
    return {**entry, "lfs": {"oid": file.sha256, "size": len(file.data), "pointerSize": len(file.pointer)}} if file.lfs else entry


def _entries(commit: Commit, folder: str = "") -> dict[str, dict[str, Any]]:
    """Files and folders below ``folder`` by path."""
    found: dict[str, dict[str, Any]] = {}
    for path, file in sorted(commit.files.items()):
        if path.startswith(folder):
            parents = [path[:i] for i in range(len(folder), len(path)) if path[i] == "/"]
            found |= {parent: {"type": "directory", "path": parent, "size": 0, "oid": "0" * 40} for parent in parents}
            found[path] = _entry(path, file)
    return found


@route("GET", "API/tree/REV(/PATH)?")
def tree(call: Call) -> Answer:
    folder = f"{call.names['path']}/".lstrip("/")
    found = _entries(call.commit(), folder)
    if folder and not found:
        raise HubError(404, "EntryNotFound", f"{folder} does not exist")
    deep = parse_qs(call.path.partition("?")[2]).get("recursive", [""])[0].lower() in ("1", "true")
    return Answer.json([entry for path, entry in found.items() if deep or "/" not in path[len(folder) :]])


@route("POST", "API/paths-info/REV")
def paths_info(call: Call) -> Answer:
    found = _entries(call.commit())
    return Answer.json([found[path] for path in parse_qs(call.body.decode()).get("paths", []) if path in found])


@route("GET HEAD", "WEB/resolve/REV/PATH")
def resolve(call: Call) -> Answer:
    commit, path = call.commit(), call.names["path"]
    if path not in commit.files:
        raise HubError(404, "EntryNotFound", commit=commit.id)
    file = commit.files[path]
    headers = {"X-Repo-Commit": commit.id}
    if file.lfs:
        call.hub.objects[file.sha256] = file.data
        headers |= {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.data))}
        return Answer(302, {**headers, "Location": f"{call.hub.storage}/storage/{file.sha256}/{quote(path)}"})
    return _content(call, file.data, {**headers, "ETag": f'"{file.etag}"'})


@route("GET HEAD", "/storage/(?P<oid>[0-9a-f]{64})/PATH")
def stored(call: Call) -> Answer:
    if call.names["oid"] not in call.hub.objects:
        raise HubError(404, message="AccessDenied")
    return _content(call, call.hub.objects[call.names["oid"]], {"ETag": f'"{call.names["oid"]}"'})


def _content(call: Call, data: bytes, headers: dict[str, str]) -> Answer:
    """All of ``data``, or the range that was asked for."""
    headers |= {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", call.headers.get("Range", ""))
    if wanted is None:
        return Answer(200, headers, data)
    first, last = wanted.groups()
    start = int(first) if first else max(0, len(data) - int(last))
    end = min(len(data), int(last) + 1) if first and last else len(data)
    if start >= end:
        return Answer(416, {**headers, "Content-Range": f"bytes */{len(data)}"})
    return Answer(206, {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}, data[start:end])
