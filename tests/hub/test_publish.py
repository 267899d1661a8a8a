"""From a run to the Hub and back: the real client against the stand-in, whole or not at all."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import RepoCard

from rocl_transfer import UserError, load_classifier
from rocl_transfer.hub import render_card
from rocl_transfer.hub.publish import PublishOptions, prepare
from tests.support.stand_in_hub import OWNER, READER, Fault

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "model_cards" / "resnet8_cifar.r_le_digits"
FILES = {"README.md", "config.json", "model.safetensors", "probe.safetensors", "results.json", "config.yaml"}
# The client's part that sends large files tries for minutes, at a pace of its own.
QUICK = {"HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2", "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms", "OMP_NUM_THREADS": "2"}
# A user's process, asked for one thing after the other: imports take 5 s.
USER = f"""
import json, os, shutil, sys, time
import timm, torch
import rocl_transfer as rt
from huggingface_hub import ModelCard, constants
from rocl_transfer.hub.download import download
from rocl_transfer.hub.publish import PublishOptions, prepare, publish

wait = time.sleep
time.sleep = lambda seconds: wait(seconds / 100)  # the client's pauses, and ours
images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))

def load(name="hf-hub:user/digits", keep=False, **more):
    download.cache_clear()
    if not keep:
        shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)
    return rt.load_classifier(name, **more)(images).tolist()

def plain(name):
    return timm.create_model(name, pretrained=True).eval()(images).tolist()

def send(repo="user/digits", run="run", token="{OWNER}", **more):
    os.environ["HF_TOKEN"] = token
    options = PublishOptions(repo_id=repo, license="mit", **more)
    return vars(publish(prepare(run, options), options))

for line in sys.stdin:
    try:
        answer = eval(line)
    except rt.UserError as error:
        answer = "UserError: " + str(error)
    except Exception as error:
        answer = "crash: " + repr(error)
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def user(hub, tmp_path):
    """Asks a process that has the stand-in as its Hub; the run of the quick start is in ``run``."""
    shutil.copytree(MODEL, tmp_path / "run")
    with subprocess.Popen(
        [sys.executable, "-c", USER], cwd=tmp_path, env={**os.environ, **hub.environment(tmp_path / "home"), **QUICK}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(tmp_path / "stderr").open("w"),
    ) as process:  # fmt: skip

        def ask(words):
            process.stdin.write(words + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


def logits():
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return load_classifier(str(MODEL))(images).tolist()


def test_published_and_loaded_by_others(hub, user):
    first = user("send(private=True, tag='v1')")
    assert first["changed"]
    repo = hub.repo("user/digits")
    assert repo.private
    there = hub.files("user/digits")
    assert {name for name in there if "/" not in name} == FILES | {".gitattributes"}
    assert {name for name in there if "/" in name} == {f"figures/{path.name}" for path in (MODEL / "figures").iterdir()}
    for name in FILES - {"README.md", "config.json"}:
        assert there[name] == (MODEL / name).read_bytes()
    assert repo.history()[0].id == repo.tags["v1"] == first["commit"]
    assert len(repo.history()) == 2  # the Hub's own first, and ours
    card = there["README.md"].decode()
    assert "license: mit" in card
    assert 'rt.load_classifier("hf-hub:user/digits")' in card
    assert OWNER not in card

    if "ENDPOINT" in inspect.getsource(RepoCard.validate):  # huggingface_hub 1.33 asks huggingface.co itself, whatever the Hub is
        assert user("ModelCard.load('user/digits').validate()") is None
    assert user("ModelCard.load('user/digits').data.eval_results[1].metric_args['epsilon']") == 0.025

    # What another model of ours left there goes; what somebody else put there stays.
    hub.add_repo("user/other", {**there, "projector.safetensors": b"another's", "figures/old.png": b"", "notes.md": b"mine"})
    assert user("send('user/other')")["changed"]
    assert set(hub.files("user/other")) == set(there) | {"notes.md"}

    # Again: nothing happens. Another branch, another tag, the same tag elsewhere.
    assert user("send(tag='v1')") == {**first, "changed": False}
    assert len(repo.history()) == 2
    branch = user("send(revision='try')")["commit"]  # its card names the branch
    assert 'rt.load_classifier("hf-hub:user/digits@try")' in hub.files("user/digits", "try")["README.md"].decode()
    assert repo.branches == {"main": first["commit"], "try": branch}
    assert "exists and is private" in user("send(private=False)")

    # In a fresh cache: bit for bit what the file gives here.
    wanted = user(f"load({str(MODEL)!r})")
    assert user("load()") == user("load('hf-hub:user/digits@v1')") == user("plain('hf-hub:user/digits')") == wanted
    sha = json.loads((MODEL / "results.json").read_text())["model"]["sha256"]
    assert user(f"load(sha256={sha!r})") == wanted
    assert "is not the file that was asked for" in user(f"load(sha256={'0' * 64!r})")

    # A revision stays what it was when the branch moves on to another's weights.
    other = dict(there)
    other["model.safetensors"] = other["model.safetensors"][:-1] + bytes([other["model.safetensors"][-1] ^ 1])
    hub.add_repo("user/digits", other)
    assert "is not the file that was exported" in user("load()")
    assert user(f"load('hf-hub:user/digits@{first['commit']}')") == wanted
    assert user("send(tag='v2')")["changed"]
    assert "has the tag v1 on another commit" in user("send(tag='v1')")


def test_who_may_not_publish_gets_a_sentence(hub, user):
    user("send()")
    before = hub.files("user/digits")
    sentences = {
        "send(token='')": "log in with `hf auth login`",
        "send(token='hf_wrong')": "the Hub does not know the token; log in",
        f"send(token={READER!r})": "your token does not allow it",
        "send('stranger/digits')": "your token does not allow it",
    }
    for words, sentence in sentences.items():
        answer = user(words)
        assert answer.startswith("UserError: "), answer
        assert sentence in answer
        assert "hf_" not in answer
    assert hub.files("user/digits") == before
    assert "there is no such repository" in user("load('hf-hub:user/none')")
    assert "there is no such revision" in user("load('hf-hub:user/digits@none')")
    assert "write USER/NAME" in user("load('hf-hub:a/b/c')")
    hub.add_repo("user/pickled", {"config.json": before["config.json"], "pytorch_model.bin": b"\x80\x04."})
    assert "only safetensors in timm's layout is read" in user("load('hf-hub:user/pickled')")
    wanted = user("load()")
    user("setattr(constants, 'HF_HUB_OFFLINE', True)")
    assert user("load(keep=True)") == wanted
    assert "it is not in the cache" in user("load('hf-hub:user/pickled@main2', keep=True)")
    user("setattr(constants, 'HF_HUB_OFFLINE', False)")
    hub.stop()
    assert "check your network" in user("load()")
    assert "check your network" in user("send()")


FAULTS = [
    *(Fault("status", path, status=status, times=times) for path in ("/resolve/.*model.safetensors", "/revision/|/tree/", "/storage/")
      for status, times in ((500, 1), (403, 99), (404, 99))),
    Fault("status", "/storage/", status=503, times=99), Fault("status", "/storage/", status=401, times=99), Fault("status", "/storage/", status=429),
    *(Fault(kind, path, method="GET", times=times) for path in ("/storage/", "config.json")
      for kind, times in (("cut", 1), ("lost", 1), ("flipped", 1), ("flipped", 99), ("shortened", 1))),
    Fault("cut", "/storage/", method="GET", times=99), Fault("slow", "/storage/", seconds=0.2),
]  # fmt: skip


def test_a_faulty_download_is_right_or_refused(hub, user):
    hub.add_repo("user/digits", {name: (MODEL / name).read_bytes() for name in FILES})
    wanted, ends = user("load()"), []
    for fault in FAULTS:
        hub.order(fault)
        answer = user("load()")
        hub.orders.faults.clear()
        case = f"{fault} -> {str(answer)[:300]}"
        if isinstance(answer, str):
            assert answer.startswith("UserError: "), case
            assert "\n" not in answer, case
            assert fault.times > 1, case
        else:
            assert answer == wanted, case
        ends.append((fault.met > 0, isinstance(answer, str)))
        assert user("load(keep=True)") == wanted, case  # nothing half-written is in the cache
    assert {(True, True), (True, False)} <= set(ends)


@pytest.mark.slow
def test_a_broken_upload_is_repeated_without_harm(hub, user):
    faults = [
        *(Fault("status", path, status=status, times=times) for path in ("/preupload/", "/commit/", "/xet-write-token/")
          for status, times in ((500, 1), (403, 99))),
        Fault("status", "/commit/", status=500, times=99), Fault("status", "/commit/", status=401, times=99),
        *(Fault(kind, "/commit/", times=times) for kind, times in (("cut", 1), ("lost", 1), ("cut", 99))),
        Fault("status", "/cas/"), Fault("cut", "/cas/"), Fault("flipped", "/cas/v1/xorbs/"),
    ]  # fmt: skip
    ends = []
    for number, fault in enumerate(faults):
        name = f"user/m{number}"
        hub.order(fault)
        answer = user(f"send({name!r})")
        hub.orders.faults.clear()
        case = f"{fault} -> {answer}"
        assert isinstance(answer, dict) or answer.startswith("UserError: "), case
        if ("model", name) in hub.repos:
            assert set(hub.files(name)) - {".gitattributes"} in (set(), FILES | {f"figures/{p.name}" for p in (MODEL / "figures").iterdir()}), case
        assert isinstance(user(f"send({name!r})"), dict), case
        assert len(hub.repo(name).history()) == 2, case
        assert hub.files(name)["model.safetensors"] == (MODEL / "model.safetensors").read_bytes()
        ends.append(isinstance(answer, dict))
    assert {True, False} == set(ends)


@pytest.fixture
def run(tmp_path):
    return shutil.copytree(MODEL, tmp_path / "run")


def test_what_does_not_fit_together_is_not_published(run):
    def refuse(sentence):
        with pytest.raises(UserError, match=sentence):
            prepare(run, PublishOptions(repo_id="user/digits"))

    publication = prepare(run, PublishOptions(repo_id="user/digits"))
    assert set(publication.files) >= FILES
    assert sum(publication.sizes().values()) < 2_000_000
    # A number that was typed.
    card = (run / "README.md").read_text()
    (run / "README.md").write_text(card.replace("60.28", "70.28"))
    refuse(r"README\.md is not what results\.json and the template make of it \(line \d+\)")
    (run / "README.md").write_text(card)
    # A record that was typed: the card does not fit it, and rendered again, the samples do not.
    results = json.loads((run / "results.json").read_text())
    changed = json.loads(json.dumps(results))
    changed["evaluations"][0]["accuracy"] = 0.99
    (run / "results.json").write_text(json.dumps(changed))
    refuse("is not what")
    (run / "verdicts.jsonl").write_text("".join(json.dumps({"index": i, "clean": i < 351}) + "\n" for i in range(360)))
    render_card(run)
    refuse(r"results\.json says 0\.99 of 360 for clean, the 360 samples in verdicts\.jsonl say 0\.975")
    (run / "results.json").write_text(json.dumps(results))
    render_card(run)
    refuse(r"verdicts\.jsonl does not belong to results\.json or is damaged \(KeyError: 'pgd-20 linf 0.025'\)")
    entries = {"clean": 0.975, "pgd-20 linf 0.025": 0.9444, "pgd-20 linf 0.05": 0.8972, "pgd-20 linf 0.1": 0.6611, "pgd-20 linf 0.15": 0.3194}
    lines = [{"index": i, **{name: i < round(360 * share) for name, share in entries.items()}} for i in range(360)]
    (run / "verdicts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert prepare(run, PublishOptions(repo_id="user/digits"))
    (run / "verdicts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines)[:-9])
    refuse(r"is damaged \(JSONDecodeError")
    (run / "verdicts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))
    refuse(r"the 359 samples in verdicts\.jsonl say")
    (run / "verdicts.jsonl").unlink()
    # Other weights than those that were measured.
    (run / "results.json").write_text(json.dumps({**results, "model": {**results["model"], "sha256": "0" * 64}}))
    refuse("is of other weights")
    (run / "results.json").unlink()
    refuse(r"has no results\.json")
    (run / "model.safetensors").unlink()
    refuse(r"has no model\.safetensors")


def test_nothing_else_leaves_the_folder(run):
    for name in ("secret.txt", "weights.pt", "verdicts.jsonl.bak", ".env", "figures/notes.txt"):
        (run / name).write_text("token")
    (run / "checkpoints" / "step-1").mkdir(parents=True)
    sent = set(prepare(run, PublishOptions(repo_id="user/digits")).files)
    assert not {"secret.txt", "weights.pt", ".env", "figures/notes.txt", "verdicts.jsonl.bak"} & sent


def test_a_card_does_not_depend_on_where_it_is_rendered(run, tmp_path, monkeypatch):
    results = json.loads((run / "results.json").read_text())
    results["dataset"]["name"] = "data/birds"  # a folder, with the look of a repository
    (run / "results.json").write_text(json.dumps(results))
    (tmp_path / "data" / "birds").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    render_card(run)
    monkeypatch.chdir("/")
    publication = prepare(run, PublishOptions(repo_id="user/birds"))
    assert "datasets:" not in publication.card
    assert "type: birds" in publication.card
    assert "--data.name DATA --attacks standard" in publication.card
    assert any("figures/adversarial.png shows" in warning for warning in publication.warnings)
    results["dataset"]["revision"] = "0" * 40
    (run / "results.json").write_text(json.dumps(results))
    render_card(run)
    assert "datasets:\n- data/birds" in prepare(run, PublishOptions(repo_id="user/birds")).card
