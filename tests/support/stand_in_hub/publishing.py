"""Repositories made, files taken, commits, branches and tags."""

import base64
import hashlib
import json
import re
import time
from typing import Any

import yaml

from .repos import GIT_ATTRIBUTES, File, HubError, Repo, needs_lfs
from .routes import Answer, Call, route
from .state import State
from .xet import unpack_shard, unpack_xorb

LICENSES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc0-1.0", "gpl-3.0", "unknown", "other")  # some


@route("POST", "/api/repos/create")
def create_repo(call: Call) -> Answer:
    wanted, user = call.json, call.user
    if user is None:
        raise HubError(401, message="Invalid username or password.")
    type, id = wanted.get("type") or "model", f"{wanted.get('organization') or user.name}/{wanted['name']}"
    if not user.write or id.split("/")[0] != user.name:
        raise HubError(403, message=f'You don\'t have the rights to create a {type} under the namespace "{id.split("/")[0]}"')
    url = f"{call.hub.endpoint}/{'' if type == 'model' else f'{type}s/'}{id}"
    if (type, id) in call.hub.repos:
        return Answer.json({"error": f"You already created this {type} repo", "url": url}, 409)
    private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
    call.hub.repos[type, id] = repo = Repo(id, type, private)
    repo.commit({".gitattributes": File.of(".gitattributes", GIT_ATTRIBUTES)}, "initial commit")
    return Answer.json({"url": url, "name": id, "id": id})


@route("POST", "API/tag/REV")
def create_tag(call: Call) -> Answer:
    repo, tag = call.repo(write=True), call.json["tag"]
    if tag in repo.tags:
        raise HubError(409, message=f"Tag {tag} already exists")
    repo.tags[tag] = repo.at(call.names["rev"]).id
    return Answer.json({})


@route("POST", "API/branch/REV")
def create_branch(call: Call) -> Answer:
    repo, branch = call.repo(write=True), call.names["rev"]
    if branch in repo.branches:
        raise HubError(409, message=f"Branch {branch} already exists")
    repo.branches[branch] = repo.at(call.json.get("startingPoint") or "main").id
    return Answer.json({})


@route("DELETE", "API/(?P<kind>tag|branch)/REV")
def delete_ref(call: Call) -> Answer:
    repo = call.repo(write=True)
    if (repo.tags if call.names["kind"] == "tag" else repo.branches).pop(call.names["rev"], None) is None:
        raise HubError(404, "RevisionNotFound")
    return Answer.json({})


@route("POST", "/api/validate-yaml")
def validate_yaml(call: Call) -> Answer:
    errors, warnings = _check_card(call.json["content"])
    found = {kind: [{"message": text} for text in texts] for kind, texts in (("errors", errors), ("warnings", warnings))}
    return Answer.json(found, 400 if errors else 200)


def _check_card(text: str) -> tuple[list[str], list[str]]:
    """Errors and warnings; the Hub checks far more, and knows more licences."""
    head = re.match(r"\s*---[\r\n]+([\S\s]*?)[\r\n]+---[\r\n]", text)
    if head is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(head[1])
    except yaml.YAMLError as error:
        return [f"YAML metadata cannot be parsed: {error}"], []
    if not isinstance(data, dict):
        return ["YAML metadata must be an object"], []
    errors = [f'"{key}" must be an array' for key in ("tags", "model-index") if not isinstance(data.get(key) or [], list)]
    if errors:
        return errors, []
    if str(data.get("license", "other")) not in LICENSES:
        errors.append(f'"license" must be one of [{", ".join(LICENSES)}]')
    for i, model in enumerate(data.get("model-index") or []):
        for j, result in enumerate(model.get("results") or []):
            errors += [f'"model-index[{i}].results[{j}].{key}" is required' for key in ("task", "dataset", "metrics") if not result.get(key)]
        errors += [f'"model-index[{i}].{key}" is required' for key in ("name", "results") if not model.get(key)]
    return errors, []


@route("POST", "API/preupload/REV")
def preupload(call: Call) -> Answer:
    there = call.repo(write=True).at(call.names["rev"]).files
    modes = []
    for file in call.json["files"]:
        lfs = needs_lfs(file["path"], file["size"], base64.b64decode(file["sample"]))
        known = {"oid": there[file["path"]].etag} if file["path"] in there else {}
        modes.append({"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, **known})
    return Answer.json({"files": modes})


@route("POST", r"WEB\.git/info/lfs/objects/batch")
def lfs_batch(call: Call) -> Answer:
    call.repo(write=True)
    objects = []
    for wanted in call.json["objects"]:
        actions = {"upload": {"href": f"{call.hub.storage}/lfs/{wanted['oid']}"}, "verify": {"href": f"{call.hub.endpoint}/lfs/verify"}}
        objects.append(wanted if wanted["oid"] in call.hub.objects else {**wanted, "actions": actions})
    return Answer.json({"transfer": "basic", "objects": objects})


@route("PUT", "/lfs/(?P<oid>[0-9a-f]{64})")
def lfs_upload(call: Call) -> Answer:
    if hashlib.sha256(call.body).hexdigest() != call.names["oid"]:
        raise HubError(400, message="BadDigest: the content is not what its SHA-256 says")
    call.hub.objects[call.names["oid"]] = call.body
    return Answer()


@route("POST", "/lfs/verify")
def lfs_verify(call: Call) -> Answer:
    if len(call.hub.objects.get(call.json["oid"], b"")) != call.json["size"]:
        raise HubError(404, message="The object was not uploaded")
    return Answer.json({})


@route("GET", "API/xet-write-token/REV")
def xet_token(call: Call) -> Answer:
    call.repo(write=True)
    return Answer.json({"casUrl": f"{call.hub.storage}/cas", "accessToken": "xet", "exp": int(time.time()) + 3600})


@route("POST", "/cas/v1/xorbs/default/(?P<hash>[0-9a-f]{64})")
def xet_xorb(call: Call) -> Answer:
    try:  # the real one also checks the hash, which no library here computes; the shard's SHA-256 finds what passes
        call.hub.xorbs[call.names["hash"]] = unpack_xorb(call.body)
    except OSError as error:
        raise HubError(400, message="the xorb is damaged") from error
    return Answer.json({"was_inserted": True})


@route("POST", "/cas/v1/shards")
def xet_shard(call: Call) -> Answer:
    try:
        files = list(unpack_shard(call.body, call.hub.xorbs))
    except KeyError as missing:
        raise HubError(400, message=f"xorb {missing} was not uploaded") from missing
    for said, content in files:
        if hashlib.sha256(content).hexdigest() != said:
            raise HubError(400, message="the chunks do not make the file")
        call.hub.objects[said] = content
    return Answer.json({"result": 1})


@route("POST", "API/commit/REV")
def commit(call: Call) -> Answer:
    repo, branch = call.repo(write=True), call.names["rev"]
    if branch not in repo.branches:
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {branch}")
    lines = [json.loads(line) for line in call.body.splitlines()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    head = repo.at(branch)
    if "parentCommit" in header and not head.id.startswith(header["parentCommit"]):
        raise HubError(412, message="A commit has happened since. Please refresh and try again.")
    files = dict(head.files)
    for line in lines:
        _change(call.hub, files, line["key"], line["value"])
    made = repo.commit(files, header["summary"], branch)
    url = f"{call.hub.endpoint}/{'' if repo.type == 'model' else f'{repo.type}s/'}{repo.id}/commit/{made.id}"
    return Answer.json({"success": True, "commitOid": made.id, "commitUrl": url, "hookOutput": ""})


def _change(hub: State, files: dict[str, File], key: str, value: dict[str, Any]) -> None:
    """Carry out one line of a commit on ``files``."""
    path = value.get("path", "")
    if key == "file":
        files[path] = File(base64.b64decode(value["content"]), False)
        if path == "README.md" and (errors := _check_card(files[path].data.decode())[0]):
            raise HubError(400, message=errors[0])
    elif key == "lfsFile":
        if value["oid"] not in hub.objects:
            raise HubError(400, message="Your push was rejected because an LFS pointer pointed to a file that does not exist")
        files[path] = File(hub.objects[value["oid"]], True)
    elif key in ("deletedFile", "deletedFolder"):
        gone = [name for name in files if name == path or (key == "deletedFolder" and name.startswith(path.rstrip("/") + "/"))]
        if not gone:
            raise HubError(404, "EntryNotFound", "A file with this name doesn't exist")
        for name in gone:
            del files[name]
    elif key != "header":
        raise HubError(400, message=f"The stand-in does not know {key}")
