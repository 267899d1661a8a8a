"""Webdataset shards as they come: what is wrong is named with its shard and its key."""

import io
import tarfile

import pytest
import torch

from rocl_transfer import UserError
from rocl_transfer.data import load_images, store_splits


def encoded(noise_image, seed, kind="JPEG"):
    noise_image(seed).save(file := io.BytesIO(), kind)
    return file.getvalue()


def write(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            shard.addfile(entry, io.BytesIO(data))


@pytest.fixture
def samples(noise_image):
    """Members of 20 samples from the given one on; red ones have the label 1."""

    def make(start=0, kind="jpg", label="cls", pattern="{:05}"):
        return [
            (f"{pattern.format(seed)}.{extension}", content)
            for seed in range(start, start + 20)
            for extension, content in (
                (kind, encoded(noise_image, seed, "PNG" if kind.lower() == "png" else "JPEG")),
                (label, f"{seed % 2}\n".encode()),
            )
        ]

    return make


def opened(folder, **options):
    return load_images(str(folder), validation_fraction=0, **options)


def right(data, count):
    _, stores = store_splits(data, ("train", "test"), torch.device("cpu"))
    assert sum(map(len, stores.values())) == count
    for split, store in stores.items():
        means = next(iter(store.batches([torch.arange(len(store))]))).float().mean((2, 3))
        assert torch.equal(means[:, 0] > means[:, 2], getattr(data, split).labels.bool())
    return True


def test_images_of_every_kind_and_members_in_any_order(tmp_path, samples):
    mixed = [*samples(0), *samples(20, "png"), *samples(40, "JPEG", pattern="deep/folder/{:03}"), *samples(60, "jpg", "CLS")]
    write(tmp_path / "s" / "train-0.tar", mixed[::2])
    write(tmp_path / "s" / "train-1.tar", sorted(mixed[1::2]))  # labels alone: no sample of this shard has an image
    with pytest.raises(UserError, match=r"80 of 160 samples have no image, the first is sample \S+ of \S*train-1.tar, which has cls: complete"):
        opened(tmp_path / "s")
    (tmp_path / "s" / "train-1.tar").unlink()
    write(tmp_path / "s" / "train-0.tar", [*mixed[::2], *mixed[1::2]])
    data = opened(tmp_path / "s")
    assert data.class_names == ("0", "1")
    assert right(data, 80)


def test_shards_are_of_the_split_they_are_called_as(tmp_path, samples):
    for number, name in enumerate(["train-000.tar", "train-001.tar", "val-000.tar", "test-000.tar"]):
        write(tmp_path / "s" / name, samples(20 * number))
    data = opened(tmp_path / "s")
    assert (len(data.train), len(data.validation), len(data.test)) == (40, 20, 20)
    write(tmp_path / "s" / "more.tar", samples(80))
    with pytest.raises(UserError, match=r"more.tar of \S* is of no split, beside \S*-000.tar: name it as the split"):
        opened(tmp_path / "s")


def test_names_that_are_no_splits_are_all_trained_on(tmp_path, samples):
    for number, name in enumerate(["a.tar", "latest.tar", "contest_b.tar"]):
        write(tmp_path / "s" / name, samples(20 * number))
    (tmp_path / "s" / "index.json").write_text("{}")
    data = opened(tmp_path / "s")
    assert right(data, 60)
    assert "1 file is not a shard and is left out: index.json" in data.notes


def test_a_label_that_is_missing_is_named_by_shard_and_key(tmp_path, samples):
    members = samples()
    write(tmp_path / "s" / "a.tar", [member for member in members if member[0] != "00007.cls"])
    with pytest.raises(
        UserError, match=r"labels are needed, and 1 of 20 images of split 'train' has none: sample 00007 of \S*a.tar: complete the member cls"
    ):
        opened(tmp_path / "s")
    write(tmp_path / "s" / "a.tar", [(name, b" \n" if name == "00003.cls" else content) for name, content in members])
    with pytest.raises(UserError, match="sample 00003 of"):
        opened(tmp_path / "s")
    data = opened(tmp_path / "s", labels_needed=False)
    assert len(data.train) == 20
    assert any("the labels are not used: 1 of 20 images" in note for note in data.notes)


def test_a_shard_that_is_built_otherwise_is_named(tmp_path, samples):
    write(tmp_path / "s" / "a.tar", samples())
    write(tmp_path / "s" / "b.tar", samples(20, label="txt"))
    write(tmp_path / "s" / "c.tar", samples(40, "png"))
    words = r"20 of 60 images .* have none, the first is sample 00020 of \S*b.tar: the shard b.tar has samples of jpg, txt, where a.tar has cls, jpg"
    with pytest.raises(UserError, match=words):
        opened(tmp_path / "s")
    data = opened(tmp_path / "s", labels_needed=False)
    assert len(data.train) == 60
    assert "the shard b.tar has samples of jpg, txt, where a.tar has cls, jpg" in data.notes


def test_labels_under_another_name_are_offered(tmp_path, samples):
    write(tmp_path / "s" / "a.tar", samples(label="class.txt"))
    with pytest.raises(UserError, match=r"no member cls: name another with --data.label_column \(class.txt\)"):
        opened(tmp_path / "s")
    assert right(opened(tmp_path / "s", label_column="class.txt"), 20)
    with pytest.raises(UserError, match="has a member 'class.text'; did you mean 'class.txt'"):
        opened(tmp_path / "s", label_column="class.text")


def test_more_than_one_image_in_a_sample(tmp_path, samples):
    members = [(name.replace(".cls", ".seg.png"), content) for name, content in samples() if name.endswith("jpg")]
    masks = [(name.replace(".jpg", ".seg.png"), content) for name, content in members]
    write(tmp_path / "s" / "a.tar", [*samples(), *masks])
    with pytest.raises(UserError, match=r"sample 00000 of \S*a.tar has more than one image \(jpg, seg.png\): name one with --data.image_column"):
        opened(tmp_path / "s")
    assert right(opened(tmp_path / "s", image_column="jpg"), 20)


@pytest.mark.parametrize("at", ["in an image", "in a header", "between members", "a bad header"])
def test_a_shard_that_was_cut_is_named(tmp_path, samples, at):
    write(tmp_path / "s" / "a.tar", samples())
    write(tmp_path / "s" / "b.tar", samples(20))
    path = tmp_path / "s" / "b.tar"
    with tarfile.open(path) as tar:
        member = tar.getmembers()[30]
    whole = path.read_bytes()
    if at == "a bad header":
        path.write_bytes(whole[: member.offset] + b"\x01" * 512 + whole[member.offset + 512 :])
    else:
        path.write_bytes(whole[: {"in an image": member.offset_data + 100, "in a header": member.offset + 100, "between members": member.offset}[at]])
    if at == "between members":
        data = opened(tmp_path / "s")
        assert right(data, 35)
        assert any(note.startswith(f"the shard {path} has no end mark after sample 00034: it may have been cut") for note in data.notes)
        return
    with pytest.raises(UserError, match=r"the shard \S*b.tar is (cut or )?damaged after sample 000\d\d.*: write or download it anew"):
        opened(tmp_path / "s")


def test_members_that_belong_to_no_sample_are_said_and_never_followed(tmp_path, samples):
    path = tmp_path / "s" / "a.tar"
    write(path, [*samples(), ("README", b"x"), (".hidden.jpg", b"x")])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    data = opened(tmp_path / "s")
    assert right(data, 20)
    assert "3 members of a.tar are not files of a sample (KEY.EXTENSION) and are left out, the first is README" in data.notes


def test_a_sample_without_an_image_and_one_twice(tmp_path, samples):
    write(tmp_path / "s" / "a.tar", samples()[1:])
    data = opened(tmp_path / "s")
    assert right(data, 19)
    assert any(note.startswith("1 of 20 samples has no image and is left out: sample 00000 of ") for note in data.notes)
    write(tmp_path / "s" / "a.tar", [*samples(), samples()[4]])
    with pytest.raises(UserError, match=r"the shard \S*a.tar has two members 00002.jpg"):
        opened(tmp_path / "s")


def test_an_image_that_cannot_be_read_is_named_by_shard_and_key(tmp_path, samples):
    write(tmp_path / "s" / "a.tar", [(name, b"no image" if name == "00011.jpg" else content) for name, content in samples()])
    data, _ = store_splits(opened(tmp_path / "s"), ("train", "test"), torch.device("cpu"), max_unreadable=0.5)
    assert data.unreadable == (f"train: sample 00011 of {tmp_path}/s/a.tar (of no format that Pillow reads)",)


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_archives_of_other_kinds_are_named(tmp_path, name):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / name).write_bytes(b"x")
    with pytest.raises(UserError, match=f"archives such as {name} are not opened"):
        opened(tmp_path / "s")
