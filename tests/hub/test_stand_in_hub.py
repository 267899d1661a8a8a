"""The real clients against the stand-in: what they get, what they say of faults, and what they do not notice."""

import http.client
import io
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save
from timm.models import save_for_hf

from tests.support.stand_in_hub import OWNER, READER, STRANGER, Fault
from tests.support.stand_in_hub.xet import _ungroup

# What every child begins with: `note` runs something and writes down its result, or the error, and how many seconds the client would have
# waited between its tries; it does not wait them.
PRELUDE = """
import json, os, pathlib, sys, time
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
notes, waited, sleep = {}, [], time.sleep
def wait(seconds):
    waited.append(seconds)
    sleep(min(seconds, 0.01))
time.sleep = wait
def note(name, call):
    waited.clear()
    try:
        notes[name] = [call(), sum(waited)]
    except Exception as error:
        notes[name] = [type(error).__name__, sum(waited), str(error)]
def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes().hex() for path in sorted(pathlib.Path(folder).rglob("*")) if path.is_file()}
"""


@pytest.fixture
def child(hub, tmp_path):
    """Run code in a process of its own and give its notes."""

    def run(code, token=None, home="home", **environment):
        done = subprocess.run(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(code) + "\njson.dump(notes, open('notes.json', 'w'))"], cwd=tmp_path,
            env={**os.environ, **hub.environment(tmp_path / home, token, **environment)}, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads((tmp_path / "notes.json").read_text())

    return run


def hexed(files):
    return {path: data.hex() for path, data in files.items()}


def weights(seed, n=60_000):
    return save({"w": torch.randn(n, generator=torch.Generator().manual_seed(seed))}, {"format": "pt"})


PUBLISH = """
    api = HfApi()
    note("name", lambda: api.whoami()["name"])
    note("created", lambda: str(api.create_repo("user/m", private=True)))
    note("created again", lambda: str(api.create_repo("user/m", private=True, exist_ok=True)))
    note("created twice", lambda: api.create_repo("user/m"))
    note("first", lambda: api.upload_folder(repo_id="user/m", folder_path="model").oid)
    note("again", lambda: api.upload_folder(repo_id="user/m", folder_path="model").oid)
    first = notes["first"][0]
    note("tag", lambda: api.create_tag("user/m", tag="v1"))
    note("tag again", lambda: api.create_tag("user/m", tag="v1"))
    note("branch", lambda: api.create_branch("user/m", branch="try/out"))
    def commit(**more):
        changes = [CommitOperationAdd("config.json", b"[2]"), CommitOperationAdd("added.bin", bytes(20_000)), CommitOperationDelete("deep/er/x.txt")]
        return api.create_commit("user/m", changes, commit_message="Second", parent_commit=first, **more).oid
    note("second", commit)
    note("moved", commit)
    note("on a branch", lambda: commit(revision="try/out"))
    note("nowhere", lambda: commit(revision="nope"))
    for revision in (None, first, "v1", "try/out"):
        note(f"at {revision or 'main'}", lambda: content(snapshot_download("user/m", revision=revision)))
    note("no such revision", lambda: snapshot_download("user/m", revision="nope"))
    note("no such file", lambda: hf_hub_download("user/m", "nope.txt"))
    note("anonymous", lambda: snapshot_download("user/m", token=False, cache_dir="other"))
    note("stranger", lambda: snapshot_download("user/m", token="STRANGER", cache_dir="other"))
    note("wrong token", lambda: HfApi(token="hf_wrong").whoami())
    note("reader", lambda: pathlib.Path(hf_hub_download("user/m", "config.json", token="READER", cache_dir="other")).read_text())
    note("reader writes", lambda: HfApi(token="READER").upload_folder(repo_id="user/m", folder_path="model"))
    pathlib.Path("model/README.md").write_text("---\\nlicense: mine\\n---\\n")
    note("bad card", lambda: api.upload_folder(repo_id="user/m", folder_path="model"))
""".replace("STRANGER", STRANGER).replace("READER", READER)


@pytest.mark.parametrize("way", ["as installed", "by LFS"])  # huggingface_hub brings hf_xet, and then uploads by nothing else
def test_what_is_published_comes_back(hub, child, tmp_path, way):
    files = {
        "config.json": b"{}", "README.md": b"---\nlicense: mit\n---\nA model.\n", "model.safetensors": weights(0), "deep/er/x.txt": b"x",
        "noise.bin": b"\0" + np.random.default_rng(0).bytes(300_000), "same.bin": bytes(200_000), "empty.txt": b"",
    }  # fmt: skip
    for path, data in files.items():
        (tmp_path / "model" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / path).write_bytes(data)
    notes = child(PUBLISH, OWNER, **({"HF_HUB_DISABLE_XET": "1"} if way == "by LFS" else {}))

    repo = hub.repo("user/m")
    assert repo.private
    assert [commit.title for commit in repo.history()] == ["Second", "Upload folder using huggingface_hub", "initial commit"]
    first, second = repo.history()[1].id, repo.history()[0].id
    before = hub.files("user/m", first)
    assert before == {**files, ".gitattributes": before[".gitattributes"]}
    assert {path for path, file in repo.at(first).files.items() if file.lfs} == {"model.safetensors", "noise.bin", "same.bin"}
    assert bool(hub.seen(path="/cas/v1/xorbs")) == (way == "as installed")
    assert bool(hub.seen("PUT", "/lfs/")) == (way == "by LFS")
    assert (repo.tags, repo.branches["main"]) == ({"v1": first}, second)
    assert [notes[name][0] for name in ("name", "first", "again", "second", "on a branch")] == ["user", first, first, second, repo.at("try/out").id]
    after = {**before, "config.json": b"[2]", "added.bin": bytes(20_000)}
    del after["deep/er/x.txt"]
    for revision, expected in (("main", after), (first, before), ("v1", before), ("try/out", after)):
        assert notes[f"at {revision}"][0] == hexed(expected) == hexed(hub.files("user/m", revision))
    assert hub.seen("GET", "/storage/")
    assert not any(request.token for request in hub.seen(path="/storage/"))  # another host: the client keeps the token to itself

    assert notes["created"][0] == notes["created again"][0] == f"{hub.endpoint}/user/m"
    assert notes["reader"][0] == "[2]"
    refused = {
        "created twice": ("HfHubHTTPError", "already created"), "tag again": ("HfHubHTTPError", "already exists"),
        "moved": ("HfHubHTTPError", "A commit has happened since"), "nowhere": ("RevisionNotFoundError", "nope"),
        "no such revision": ("RevisionNotFoundError", "nope"), "no such file": ("RemoteEntryNotFoundError", "nope.txt"),
        "anonymous": ("RepositoryNotFoundError", "401"), "stranger": ("RepositoryNotFoundError", "404"),
        "wrong token": ("HfHubHTTPError", "Invalid user token"), "reader writes": ("HfHubHTTPError", "403"),
        "bad card": ("ValueError", '"license" must be one of'),
    }  # fmt: skip
    for name, (error, words) in refused.items():
        assert notes[name][0] == error, name
        assert words in notes[name][2], name


def test_the_cache_serves_offline_and_when_the_hub_is_down(hub, child):
    hub.add_repo("user/m", {"a.txt": b"a"})
    load = 'note("one", lambda: content(snapshot_download("user/m"))); note("other", lambda: snapshot_download("user/none"))'
    files = [{"a.txt": b"a".hex()}, 0]
    assert child(load)["one"] == files
    requests = len(hub.requests)
    notes = child(load, HF_HUB_OFFLINE="1")
    assert (notes["one"], notes["other"][0]) == (files, "LocalEntryNotFoundError")
    assert len(hub.requests) == requests
    hub.stop()
    notes = child(load)
    assert (notes["one"], notes["other"][0]) == (files, "LocalEntryNotFoundError")


def test_what_the_client_does_at_faults_of_downloads(hub, child):
    """Pins what the client does, so that our own code is written for it: another version may differ."""
    of_the_body = ["cut", "lost", "flipped", "shortened", "slow"]
    of_a_status = ["get-500", "get-429", "head-500", "head-401", "head-403", "head-404"]
    files = {f"{name}.bin": name.encode() * 5_000 for name in ["fine", "gone", "down", *of_the_body, *of_a_status]}
    hub.add_repo("user/m", {**files, "large.bin": bytes(16 << 20)})
    for repo in ("gated", "info"):
        hub.add_repo(f"user/{repo}", {"x.txt": b"x"})
    faults = [Fault(name, f"/{name}.bin", "GET", seconds=0.5) for name in of_the_body]
    for method, status in (name.split("-") for name in of_a_status):
        faults.append(Fault("status", f"/{method}-{status}.bin", method.upper(), status=int(status), seconds=0))
    faults += [
        Fault("cut", "/large.bin", "GET", share=0.9), Fault("lost", "/gone.bin", "HEAD"),
        Fault("status", "/user/gated/", status=403, code="GatedRepo"), Fault("status", "/info/revision/"),
    ]  # fmt: skip
    for fault in faults:
        hub.order(fault)
    down = hub.order(Fault("status", "/down.bin", times=100))
    notes = child(f"""
        for name in {[*files, "large.bin"]}:
            note(name[:-4], lambda: len(pathlib.Path(hf_hub_download("user/m", name)).read_bytes()))
        note("flipped bytes", lambda: pathlib.Path(hf_hub_download("user/m", "flipped.bin")).read_bytes().hex())
        for name in ("gated", "info"):
            note(name, lambda: sorted(content(snapshot_download("user/" + name))))
    """)
    assert [fault.met for fault in faults] == [1] * len(faults)
    assert down.met == 7

    for name, waited in (("fine", 0), ("flipped", 0), ("slow", 0), ("head-500", 0), ("cut", 1), ("lost", 1), ("get-429", 1)):
        assert notes[name] == [len(files[f"{name}.bin"]), waited], name
    assert notes["large"] == [16 << 20, 1]
    assert [request.range for request in hub.seen("GET", "large.bin")] == [None, "bytes=10485760-"]  # whole chunks of 10 MiB are kept
    errors = {
        "shortened": "OSError", "get-500": "HfHubHTTPError", "head-401": "HfHubHTTPError", "head-403": "LocalEntryNotFoundError",
        "head-404": "RemoteEntryNotFoundError", "gone": "RemoteProtocolError", "gated": "GatedRepoError", "info": "LocalEntryNotFoundError",
    }  # fmt: skip
    assert {name: notes[name][:2] for name in errors} == {name: [error, 0] for name, error in errors.items()}
    assert notes["down"][:2] == ["LocalEntryNotFoundError", 1 + 2 + 4 + 8 + 8]
    # The length is all that is checked: a flipped bit is stored under the hash of the right content, and stays.
    assert notes["flipped bytes"][0] != files["flipped.bin"].hex()


def test_what_the_client_does_at_faults_of_uploads(hub, child):
    """As above. Each repository has its own fault; a commit is whole or absent in each of them."""
    faults = {
        "fine": None, "preupload-500": Fault("status", "/preupload/"), "commit-500": Fault("status", "/commit/"),
        "commit-cut": Fault("cut", "/commit/"), "commit-lost": Fault("lost", "/commit/"), "commit-409": Fault("status", "/commit/", status=409),
        "token-403": Fault("status", "/xet-write-token/", status=403),
    }  # fmt: skip
    for name, fault in faults.items():
        for how in ("commit", "folder"):
            hub.add_repo(f"user/{how}-{name}", {"old.txt": b"old"})
            if fault is not None:
                hub.order(Fault(fault.kind, f"/{how}-{name}{fault.path}", status=fault.status))
    notes = child(f"""
        folder = pathlib.Path("folder")
        folder.mkdir()
        for i, name in enumerate({list(faults)}):
            (folder / "model.safetensors").write_bytes(bytes([i]) * 100_000)
            (folder / "config.json").write_bytes(b"{{}}")
            changes = [CommitOperationAdd(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]
            note("commit-" + name, lambda: HfApi().create_commit("user/commit-" + name, changes, commit_message="New").oid[:0])
            note("folder-" + name, lambda: HfApi().upload_folder(repo_id="user/folder-" + name, folder_path=folder).oid[:0])
    """, OWNER)  # fmt: skip
    commits = {name: len(hub.repo(f"user/{name}").history()) - 1 for name in notes}
    for i, name in enumerate(faults):
        for how in ("commit", "folder"):
            expected = {"old.txt": b"old"}
            if commits[f"{how}-{name}"]:
                expected |= {"config.json": b"{}", "model.safetensors": bytes([i]) * 100_000}
            assert hub.files(f"user/{how}-{name}") == expected
    found = {name: (answer[0], commits[name]) for name, answer in notes.items()}
    assert found == {
        "commit-fine": ("", 1), "folder-fine": ("", 1),
        "commit-preupload-500": ("", 1), "folder-preupload-500": ("", 1),
        "commit-commit-500": ("HfHubHTTPError", 0), "folder-commit-500": ("", 1),  # upload_folder alone tries a commit again,
        "commit-commit-cut": ("RemoteProtocolError", 0), "folder-commit-cut": ("", 1),
        "commit-commit-lost": ("RemoteProtocolError", 1), "folder-commit-lost": ("", 2),  # even one that was made
        "commit-commit-409": ("HfHubHTTPError", 0), "folder-commit-409": ("HfHubHTTPError", 0),
        "commit-token-403": ("ConnectionError", 0), "folder-token-403": ("ConnectionError", 0),  # hf_xet's own, an OSError
    }  # fmt: skip


def test_damaged_uploads_are_refused(hub, child):
    for repo in ("lfs", "xet"):
        hub.add_repo(f"user/{repo}", {"old.txt": b"old"})
    upload = """
        changes = [CommitOperationAdd("a.safetensors", os.urandom(90_000))]
        note("REPO", lambda: HfApi().create_commit("user/REPO", changes, commit_message="New").oid)
    """
    for path in ("^/lfs/", "^/cas/v1/xorbs/"):
        hub.order(Fault("flipped", path))
    assert child(upload.replace("REPO", "lfs"), OWNER, HF_HUB_DISABLE_XET="1")["lfs"][0] == "RuntimeError"
    assert child(upload.replace("REPO", "xet"), OWNER)["xet"][0] == "ConnectionError"
    for repo in ("lfs", "xet"):
        assert hub.files(f"user/{repo}") == {"old.txt": b"old"}


def test_timm_loads_from_it(hub, child, tmp_path):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = timm.create_model("test_resnet", num_classes=3).eval()
        folder = tmp_path / f"model-{seed}"
        save_for_hf(model, folder, safe_serialization=True)
        hub.add_repo("user/net", {path.name: path.read_bytes() for path in folder.iterdir()})
        hub.repo("user/net").tags[f"v{seed}"] = hub.repo("user/net").at("main").id
        logits.append(model(images).tolist())
    notes = child("""
        import timm, torch
        images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        for name in ("net", "net@v0", "none"):
            note(name, lambda: timm.create_model("hf-hub:user/" + name, pretrained=True).eval()(images).tolist())
    """)
    torch.testing.assert_close(torch.tensor(notes["net"][0]), torch.tensor(logits[1]))
    torch.testing.assert_close(torch.tensor(notes["net@v0"][0]), torch.tensor(logits[0]))
    assert notes["none"][0] == "RepositoryNotFoundError"


def picture(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "png")
    return buffer.getvalue()


def parquet(n):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"x": list(range(n)), "name": [f"row {i}" for i in range(n)]}), buffer)
    return buffer.getvalue()


def test_datasets_loads_from_it(hub, child):
    hub.add_repo("user/rows", {"data/train-00000-of-00001.parquet": parquet(3)}, type="dataset")
    old = hub.repo("user/rows", "dataset").at("main").id
    hub.add_repo("user/rows", {"data/train-00000-of-00001.parquet": parquet(5), "data/test-00000-of-00001.parquet": parquet(2)}, type="dataset")
    hub.add_repo("user/table", {"train.csv": b"a,b\n1,2\n3,4\n"}, type="dataset")
    hub.add_repo("user/pictures", {f"train/{c}/0.png": picture(c) for c in ("red", "blue")}, type="dataset")
    hub.repo("user/rows", "dataset").tags["v0"] = old
    hub.order(Fault("status", "/rows/resolve/v0/", status=403))
    hub.add_repo("user/secret", {"train.csv": b"a\n1\n"}, type="dataset", private=True)
    notes = child(f"""
        import datasets
        note("old rows", lambda: {{split: data["x"][:] for split, data in datasets.load_dataset("user/rows", revision="{old}").items()}})
        note("rows", lambda: {{split: data["x"][:] for split, data in datasets.load_dataset("user/rows").items()}})
        note("stream", lambda: [row["x"] for row in datasets.load_dataset("user/rows", split="train", streaming=True)])
        note("table", lambda: datasets.load_dataset("user/table", split="train")[:])
        def pictures(**how):
            data = datasets.load_dataset("user/pictures", split="train", **how)
            return sorted([data.features["label"].names[row["label"]], *row["image"].getpixel((0, 0))] for row in data)
        note("pictures", pictures)
        note("picture stream", lambda: pictures(streaming=True))
        note("refused", lambda: datasets.load_dataset("user/secret"))
        note("secret", lambda: datasets.load_dataset("user/secret", token="{OWNER}")["train"]["a"][:])
        note("no revision", lambda: datasets.load_dataset("user/rows", revision="nope"))
        note("old rows refused", lambda: datasets.load_dataset("user/rows", revision="v0", split="train")["x"][:])
    """)
    assert notes["rows"][0] == {"train": [0, 1, 2, 3, 4], "test": [0, 1]}
    assert notes["old rows"][0] == {"train": [0, 1, 2]}
    assert notes["stream"][0] == [0, 1, 2, 3, 4]
    assert notes["table"][0] == {"a": [1, 3], "b": [2, 4]}
    assert notes["pictures"][0] == notes["picture stream"][0] == [["blue", 0, 0, 255], ["red", 255, 0, 0]]
    assert notes["secret"][0] == [1]
    assert notes["refused"][0] == notes["no revision"][0] == "DatasetNotFoundError"
    # Where the Hub cannot be asked, datasets takes what it prepared last, whichever revision was wanted, and only logs it.
    assert notes["old rows refused"][0] == [0, 1, 2, 3, 4]


def test_the_stand_in_hub_answers_ranges(hub):
    hub.add_repo("user/m", {"a.txt": b"0123456789"})

    def get(wanted):
        connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"))
        connection.request("GET", "/user/m/resolve/main/a.txt", headers={"Range": wanted})
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Range"], answer.read()

    assert get("bytes=7-") == (206, "bytes 7-9/10", b"789")
    assert get("bytes=2-4") == (206, "bytes 2-4/10", b"234")
    assert get("bytes=-3") == (206, "bytes 7-9/10", b"789")
    assert get("bytes=0-99") == (206, "bytes 0-9/10", b"0123456789")
    assert get("bytes=10-")[:2] == (416, "bytes */10")


@pytest.mark.parametrize("n", range(9))
def test_bytes_grouped_by_four_are_ungrouped(n):
    data = bytes(range(n))
    assert _ungroup(b"".join(data[i::4] for i in range(4))) == data
