"""Which images validate a training."""

import dataclasses
import logging

import torch

from rocl_transfer.data import ImageData, load_images
from rocl_transfer.evaluation import choose_watched


def data(validation: int | None, classes: int = 10) -> ImageData:
    made = load_images("digits", image_size=16)

    def labelled(count):
        return dataclasses.replace(made.train, indices=torch.arange(count), labels=torch.arange(count) % classes)

    names = tuple(map(str, range(classes)))
    held_out = None if validation is None else labelled(validation)
    return dataclasses.replace(made, class_names=names, train=labelled(1500), validation=held_out)


def test_validation_looks_at_a_stratified_sample_which_is_the_same_each_time(caplog):
    caplog.set_level(logging.INFO, logger="rocl_transfer")
    images = data(5000)
    split, positions = choose_watched(images, None, seed=3)
    assert split == "validation"
    assert images.validation.labels[positions].bincount().tolist() == [100] * 10
    assert torch.equal(positions, choose_watched(images, None, seed=3)[1])
    assert not torch.equal(positions, choose_watched(images, None, seed=4)[1])
    assert "1000 of 5000 validation images are looked at" in caplog.text
    assert len(choose_watched(images, 300, seed=3)[1]) == 300


def test_few_validation_images_are_all_looked_at():
    assert torch.equal(choose_watched(data(144), None, seed=0)[1], torch.arange(144))


def test_many_classes_get_the_images_that_a_verdict_needs():
    from rocl_transfer.training.chance import images_needed

    assert images_needed(500) > 1000
    assert len(choose_watched(data(9000, classes=500), None, seed=0)[1]) == images_needed(500)


def test_without_validation_images_training_images_are_watched(caplog):
    caplog.set_level(logging.INFO, logger="rocl_transfer")
    split, positions = choose_watched(data(None), None, seed=0)
    assert (split, len(positions)) == ("train", 512)
    assert "no validation images: 512 training images are watched" in caplog.text
