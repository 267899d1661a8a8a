"""Data that is read during training: what each process gets, what a resumed epoch gets, what cannot be read."""

import io
import json
import logging
import os
import subprocess
import sys
from itertools import chain

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from rocl_transfer import UserError
from rocl_transfer.data import Sampler, StreamedBatches, open_stream

CPU = torch.device("cpu")
SHARDS, ROWS = 8, 24


def encoded(number):
    """A grey image whose value is its number."""
    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def shard(folder, name, values):
    folder.mkdir(exist_ok=True)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [None if value is None else {"bytes": value, "path": None} for value in values], "label": [0] * len(values)}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{name}.parquet", batch_size=ROWS // 2)


@pytest.fixture(autouse=True)
def no_rest(monkeypatch):
    """datasets sleeps for seconds after each pass, for the sake of its threads."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """192 images, each of a value of its own, in eight shards."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for number in range(SHARDS):
        shard(tmp_path / "data", f"train-{number}", [encoded(value) for value in range(number * ROWS, (number + 1) * ROWS)])
    return tmp_path / "data"


def batches(folder, rank=0, world=1, workers=2, seed=0, **options):
    data, stream = open_stream(str(folder), image_size=8, images=SHARDS * ROWS)
    sampler = Sampler(len(data.train), 24 // world, seed, 24 // world // 2, rank, world)
    return StreamedBatches(stream, sampler, 8, CPU, workers, **{"buffer": 16, **options})


def values(found):
    return [batch.inputs[:, 0, 0, 0].tolist() for batch in found]


def together(found):
    return list(chain.from_iterable(values(found)))


def test_an_epoch_has_every_image_once_where_shards_divide_evenly(folder):
    whole = batches(folder)
    found = list(whole.epoch(0))
    assert len(found) == whole.sampler.steps_per_epoch == 8
    assert all(batch.inputs.shape == (24, 3, 8, 8) and batch.inputs.dtype == torch.uint8 and batch.labels is None for batch in found)
    assert [batch.seeds for batch in found] == [seeds for _, seeds in whole.sampler.epoch(0)]
    seen = together(found)
    assert sorted(seen) == list(range(SHARDS * ROWS))
    # Mixed: no batch of one shard, and another order in each epoch and for each seed.
    assert all(len({value // ROWS for value in batch}) > 1 for batch in values(found))
    assert values(batches(folder).epoch(0)) == values(found)
    for other in (whole.epoch(1), batches(folder, seed=1).epoch(0)):
        assert together(other) != seen


def test_processes_read_different_shards(folder):
    ranks = [together(batches(folder, rank, 2).epoch(3)) for rank in (0, 1)]
    assert sorted(ranks[0] + ranks[1]) == list(range(SHARDS * ROWS))
    halves = [{value // (ROWS // 2) for value in rank} for rank in ranks]  # row groups
    assert not halves[0] & halves[1]


@pytest.mark.parametrize("first", [1, 4, 7])
def test_a_resumed_epoch_has_the_images_it_would_have_had(folder, first):
    stream = batches(folder, workers=3)  # shards that do not divide by the workers
    whole, rest = list(stream.epoch(2)), list(stream.epoch(2, first))
    assert values(whole[first:]) == values(rest)
    assert [batch.seeds for batch in whole[first:]] == [batch.seeds for batch in rest]


def test_who_runs_out_of_shards_begins_them_again(folder):
    (folder / "train-7.parquet").unlink()
    (folder / "train-6.parquet").unlink()
    (folder / "train-5.parquet").unlink()
    ranks = [values(batches(folder, rank, 2).epoch(0)) for rank in (0, 1)]
    assert [[len(batch) for batch in rank] for rank in ranks] == [[12] * 8] * 2


def test_one_file_is_shared_by_its_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    shard(tmp_path / "one", "train", [encoded(value) for value in range(48)])  # four row groups
    ranks = []
    for rank in (0, 1):
        _, stream = open_stream(str(tmp_path / "one"), image_size=8, images=48)
        found = StreamedBatches(stream, Sampler(48, 12, 0, None, rank, 2), 8, CPU, 1, 16).epoch(0)
        ranks.append(together(found))
    assert sorted(ranks[0] + ranks[1]) == list(range(48))
    _, stream = open_stream(str(tmp_path / "one"), image_size=8, images=48)
    with pytest.raises(UserError, match="the data has 4 shards for 5 processes: start fewer"):
        next(StreamedBatches(stream, Sampler(48, 2, 0, None, 0, 5), 8, CPU).epoch(0))


def test_an_unreadable_image_gives_its_place_to_another(folder, caplog):
    shard(folder, "train-3", [b"no image", None, *(encoded(value) for value in range(3 * ROWS + 2, 4 * ROWS))])
    with caplog.at_level(logging.WARNING, "rocl_transfer"):
        found = values(batches(folder).epoch(0))
    assert [len(batch) for batch in found] == [24] * 8
    assert set(chain(*found)) == set(range(SHARDS * ROWS)) - {3 * ROWS, 3 * ROWS + 1}
    said = [line for line in caplog.messages if line.endswith("cannot be read and is left out")]
    assert len(said) == 2
    assert any("of no format that Pillow reads" in line for line in said)
    assert values(batches(folder).epoch(0, 5)) == found[5:]
    with pytest.raises(UserError, match=r"^2 of the images streamed cannot be read, such as .* \(now 0\.01\)$"):
        list(batches(folder, max_unreadable=0.01).epoch(0))
    for number in range(SHARDS):
        shard(folder, f"train-{number}", [b"no image"] * ROWS)
    with pytest.raises(UserError, match=r"^none of 24 images in a row can be read, such as image \d+ of worker 0 \(of no format"):
        list(batches(folder, workers=1).epoch(0))


def test_what_is_not_known_is_asked_for(folder):
    with pytest.raises(UserError, match=r"does not say how many images its split 'train' has: give their number with --data\.images$"):
        open_stream(str(folder), image_size=8)
    with pytest.raises(UserError, match="there is no split 'trian'; did you mean 'train'"):
        open_stream(str(folder), image_size=8, train_split="trian", images=1)
    with pytest.raises(UserError, match="there is no column 'picture'"):
        open_stream(str(folder), image_size=8, image_column="picture", images=1)
    data, _ = open_stream(str(folder), image_size=8, images=7)
    assert len(data.train) == data.facts(data.train, "train")["n"] == 7
    with pytest.raises(UserError, match="is part of a stream"):
        data.train.encoded(0)


def test_webdataset_shards_and_image_files_stream_too(tmp_path, monkeypatch):
    import tarfile

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "tar").mkdir()
    for number in range(2):
        with tarfile.open(tmp_path / "tar" / f"train-{number}.tar", "w") as file:
            for value in range(number * 12, number * 12 + 12):
                for name, data in ((f"{value:03}.png", encoded(value)), (f"{value:03}.cls", b"1")):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(data)
                    file.addfile(entry, io.BytesIO(data))
    (tmp_path / "files").mkdir()
    for value in range(24):
        (tmp_path / "files" / f"{value}.png").write_bytes(encoded(value))
    for kind in ("tar", "files"):
        _, stream = open_stream(str(tmp_path / kind), image_size=8, images=24)
        found = StreamedBatches(stream, Sampler(24, 4, 0), 8, CPU, 2, 16).epoch(0)
        assert sorted(together(found)) == list(range(24))


def test_local_shards_of_any_kind_and_name_stream_whole(tmp_path):
    """Images of two kinds, members apart, names that are no splits: every image once; a damaged shard is named."""
    import tarfile

    (tmp_path / "tar").mkdir()
    for number, name in enumerate(("a.tar", "contest_b.tar")):
        values = range(number * 12, number * 12 + 12)
        members = [(f"{value:03}.{('jpg', 'PNG')[value % 2]}", encoded(value)) for value in values] + [(f"{value:03}.cls", b"1") for value in values]
        with tarfile.open(tmp_path / "tar" / name, "w") as file:
            for member, data in members:
                entry = tarfile.TarInfo(member)
                entry.size = len(data)
                file.addfile(entry, io.BytesIO(data))
    _, stream = open_stream(str(tmp_path / "tar"), image_size=8, images=24)
    batches = StreamedBatches(stream, Sampler(24, 4, 0), 8, CPU, 2, 16)
    assert sorted(together(batches.epoch(0))) == list(range(24))
    assert together(batches.epoch(1)) == together(batches.epoch(1)) != together(batches.epoch(0))
    path = tmp_path / "tar" / "contest_b.tar"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"^the shard \S*contest_b.tar is cut or damaged after sample 0\d\d .*: write or download it anew$"):
        list(batches.epoch(0))


def test_local_parquet_of_no_split_streams_whole(folder, tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "odd").mkdir()
    for number, path in enumerate(sorted(folder.rglob("*.parquet"))):
        shutil.copy(path, tmp_path / "odd" / f"{'contest_' if number == 0 else 'part_'}{number}.parquet")
    _, stream = open_stream(str(tmp_path / "odd"), image_size=8, images=SHARDS * ROWS)
    found = StreamedBatches(stream, Sampler(SHARDS * ROWS, 4, 0), 8, CPU, 1, 16).epoch(0)
    assert sorted(together(found)) == list(range(SHARDS * ROWS))


HUB = """
import json, torch, datasets
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0.2
from rocl_transfer.data import Sampler, StreamedBatches, open_stream
data, stream = open_stream("user/pictures", image_size=8)
found = StreamedBatches(stream, Sampler(len(data.train), 12, 0), 8, torch.device("cpu"), 2, 16).epoch(0)
print(json.dumps([data.revision, len(data.train), sum((batch.inputs[:, 0, 0, 0].tolist() for batch in found), [])]))
"""


def test_the_hub_is_read_without_a_copy_on_the_disk(folder, hub, tmp_path):
    files = {f"data/train-{n:05}-of-{SHARDS:05}.parquet": (folder / f"train-{n}.parquet").read_bytes() for n in range(SHARDS)}
    card = f"---\ndataset_info:\n  splits:\n  - name: train\n    num_examples: {SHARDS * ROWS}\n    num_bytes: 1\n---\n"
    commit = hub.add_repo("user/pictures", {**files, "README.md": card.encode()}, type="dataset").id
    environment = {**os.environ, **hub.environment(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", HUB], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    revision, count, seen = json.loads(done.stdout)
    assert (revision, count) == (commit, SHARDS * ROWS)
    assert sorted(seen) == list(range(SHARDS * ROWS))
    assert not list((tmp_path / "home").rglob("*.arrow"))
