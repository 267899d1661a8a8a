"""Datasets on the Hub: which commit was read is known, whatever the network does."""

import io
import json
import os
import subprocess
import sys

from PIL import Image

OPEN = """
import json, sys
from rocl_transfer import UserError
from rocl_transfer.data import load_images
for revision in json.loads(sys.argv[1]):
    try:
        data = load_images("user/pictures", revision=revision)
        print(json.dumps([data.revision, len(data.train) + len(data.test) + len(data.validation)]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def pictures(count):
    files = {}
    for number in range(count):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), ("red", "blue")[number % 2]).save(file, "PNG")
        files[f"train/{number % 2}/{number}.png"] = file.getvalue()
    return files


def test_the_revision_that_was_read_is_recorded(hub, tmp_path):
    old, new = (hub.add_repo("user/pictures", pictures(count), type="dataset").id for count in (20, 30))
    hub.repo("user/pictures", "dataset").tags["v1"] = old

    def load(*revisions, **more):
        words = [sys.executable, "-c", OPEN, json.dumps(revisions)]
        environment = {**os.environ, **hub.environment(tmp_path / "home", **more)}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    first = load("v1", old, None, "none")
    assert first[:3] == [[old, 20], [old, 20], [new, 30]]
    assert "cannot be opened" in first[3]
    # Without the Hub there is what was prepared last; it is never taken for another revision.
    answers = load(None, new, old, "v1", HF_HUB_OFFLINE="1")
    assert answers[:2] == [[new, 30], [new, 30]]
    for answer, wanted in zip(answers[2:], (old, "v1"), strict=True):
        assert f"revision {wanted} of user/pictures cannot be had, since the Hub cannot be asked, and the cache has {new}" in answer
