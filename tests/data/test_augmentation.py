import dataclasses

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as VF

from rocl_transfer.data import Augmentation, augmentation, generators
from rocl_transfer.data.augmentation import _brightness, _contrast, _grey, _hue, _saturation
from rocl_transfer.errors import UserError

NOTHING = {
    "jitter_probability": 0.0, "grey_probability": 0.0, "flip_probability": 0.0, "crop_area": (1.0, 1.0),
}  # fmt: skip


def pictures(n=8, size=32):
    """Smooth colour fields: crops and jitter leave traces in their moments, noise would hide them."""
    generator = torch.Generator().manual_seed(0)
    return torch.nn.functional.interpolate(torch.rand(n, 3, 4, 4, generator=generator), size=size, mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize(
    ("ours", "theirs", "amounts"),
    [
        (_brightness, VF.adjust_brightness, (0.6, 1.0, 1.4)),
        (_contrast, VF.adjust_contrast, (0.6, 1.0, 1.4)),
        (_saturation, VF.adjust_saturation, (0.0, 0.6, 1.4)),
        (_hue, VF.adjust_hue, (-0.5, -0.1, 0.0, 0.07, 0.5)),
    ],
)
def test_colour_operations_are_torchvisions(ours, theirs, amounts):
    images = torch.cat([pictures(), torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)])
    for amount in amounts:
        torch.testing.assert_close(ours(images, torch.full((10, 1, 1, 1), amount)), theirs(images, amount), atol=2e-5, rtol=0)


def test_grey_is_torchvisions():
    torch.testing.assert_close(_grey(pictures()), VF.rgb_to_grayscale(pictures()), atol=1e-5, rtol=0)


def test_views_without_any_transformation_are_the_images():
    assert torch.equal(Augmentation(**NOTHING)(pictures(), generators([1], "views")), pictures())


def test_flip_is_a_flip():
    always = Augmentation(**{**NOTHING, "flip_probability": 1.0})
    torch.testing.assert_close(always(pictures(), generators([1], "views")), pictures().flip(-1), atol=1e-5, rtol=0)


def test_crops_are_torchvisions_crop_then_resize():
    images, crops = pictures(64), Augmentation(**{**NOTHING, "crop_area": (0.08, 1.0)})
    views = crops(images, generators([1], "views"))
    generator = generators([1], "views")[0]
    crops._colours(images, generator, len(images))
    torch.rand(64, generator=generator)  # the flips
    for image, view, *box in zip(images, views, *crops._crops(64, 32, 32, generator), strict=True):
        top, left, rows, columns = (int(b) for b in box)
        expected = VF.resized_crop(image, top, left, rows, columns, [32, 32], antialias=True)
        torch.testing.assert_close(view, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("degrees", [-90.0, 90.0])
def test_rotation_is_counter_clockwise(degrees):
    turned = Augmentation(**NOTHING, rotation=(degrees, degrees))(pictures(), generators([1], "views"))
    torch.testing.assert_close(turned, torch.rot90(pictures(), round(degrees / 90), (-2, -1)), atol=1e-4, rtol=0)


def test_zoom_enlarges_and_outside_is_black():
    images = torch.ones(1, 3, 32, 32)
    small = Augmentation(**NOTHING, scale=(0.5, 0.5))(images, generators([1], "views"))
    assert small.mean().item() == pytest.approx(0.25, abs=0.02)
    assert small[..., 0, 0].max() == 0


def test_shift_moves_by_up_to_its_share():
    images = torch.zeros(500, 3, 32, 32)
    images[..., 16, 16] = 1
    views = Augmentation(**NOTHING, shift=0.25)(images, generators([1], "views"))[:, 0]
    mass = views.sum((1, 2))
    for axis in (1, 2):
        centre = (views.sum(3 - axis) * torch.arange(32)).sum(1) / mass
        assert centre.min() < 10
        assert centre.max() > 22
        assert ((centre - 16).abs() <= 8.01).all()


def test_every_sample_has_its_own_draw():
    views = Augmentation()(pictures(1).expand(16, -1, -1, -1), generators([1], "views"))
    assert len({tuple(view.flatten().tolist()) for view in views}) == 16


def test_a_group_depends_on_its_seed_alone():
    images, augmentation = pictures(8), Augmentation()
    whole = augmentation(images, generators([3, 4], "views"))
    torch.testing.assert_close(whole[4:], augmentation(images[4:], generators([4], "views")), atol=1e-6, rtol=0)


@pytest.mark.slow
def test_moments_over_10_000_draws_are_the_per_image_pipelines():
    # What is compared: mean and standard deviation over draws of each of 3 x 32 x 32 values, of one picture.
    # 10,000 draws put the standard error of a mean of spread 0.25 at 0.0025; 3,072 of them are looked at.
    n, picture = 10_000, pictures(1)
    torch.manual_seed(0)
    pipeline = v2.Compose([
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        v2.RandomGrayscale(0.2),
        v2.RandomHorizontalFlip(0.5),
        v2.RandomResizedCrop(32, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), antialias=True),
    ])  # fmt: skip
    theirs = torch.stack([pipeline(picture[0]) for _ in range(n)])
    # Groups of 10: the order of the colour operations is shared within a group.
    ours = Augmentation()(picture.expand(n, -1, -1, -1), generators(range(n // 10), "views"))
    mean_error = ours.mean(0) - theirs.mean(0)
    spread_error = ours.std(0) - theirs.std(0)
    assert mean_error.abs().max() < 0.02
    assert spread_error.abs().max() < 0.02
    assert mean_error.mean().abs() < 0.004
    assert spread_error.mean().abs() < 0.004
    # Moments of whole views: brightness and contrast of the picture as one number each.
    for moment in (lambda x: x.mean((1, 2, 3)), lambda x: x.std((1, 2, 3)), lambda x: (x.amax(1) - x.amin(1)).mean((1, 2))):
        a, b = moment(ours), moment(theirs)
        assert (a.mean() - b.mean()).abs() < 4 * (b.std() / n**0.5) * 2**0.5
        assert (a.std() - b.std()).abs() < 0.05 * b.std()


def test_alike_draws_one_transformation_for_all():
    images, augmentation = pictures(6), Augmentation()
    together = augmentation.alike(images, generators([1], "views")[0])
    alone = torch.cat([augmentation.alike(image[None], generators([1], "views")[0]) for image in images])
    assert torch.allclose(together, alone, atol=1e-6)
    assert torch.allclose(together[:1], augmentation(images[:1], generators([1], "views")), atol=1e-6)
    assert not torch.allclose(together, augmentation.alike(images, generators([2], "views")[0]), atol=0.01)


def test_how_many_images_a_cpu_takes_at_once_changes_nothing(monkeypatch):
    images, drawn = torch.rand(11, 3, 8, 6), Augmentation(rotation=(-20, 20), scale=(0.8, 1.2), shift=0.1)
    monkeypatch.setattr(augmentation, "_CACHED", 2**30)
    whole, alike = drawn(images, generators((1, 2), "views")), drawn.alike(images, generators((1,), "views")[0])
    for cached in (1, 4 * images[0].numel()):
        monkeypatch.setattr(augmentation, "_CACHED", cached)
        assert torch.equal(drawn(images, generators((1, 2), "views")), whole)
        assert torch.equal(drawn.alike(images, generators((1,), "views")[0]), alike)


EVERYTHING = Augmentation(rotation=(-20, 30), scale=(0.8, 1.25), shift=0.2, crop_area=(0.2, 0.9), crop_aspect=(0.5, 3), hue=(-0.2, 0.1))


@pytest.mark.parametrize("views", [Augmentation(), EVERYTHING, augmentation.light_views()])
def test_at_full_strength_views_are_the_same_bit_for_bit(views):
    assert views.scaled(1) == views
    draws = [generators([7], "views") for _ in range(2)]
    assert torch.equal(views.scaled(1)(pictures(), draws[0]), views(pictures(), draws[1]))


@pytest.mark.parametrize("views", [Augmentation(), EVERYTHING, augmentation.light_views()])
def test_at_no_strength_images_are_at_most_mirrored(views):
    images, weak = pictures(), views.scaled(0)
    assert weak.flip_probability == views.flip_probability
    for seed in range(5):
        for view, image in zip(weak(images, generators([seed], "views")), images, strict=True):
            assert min((view - image).abs().max(), (view - image.flip(-1)).abs().max()) < 1e-5


def test_every_range_moves_linearly_and_every_probability_but_the_flips():
    weak = EVERYTHING.scaled(0.25)
    expected = {
        "brightness": (0.9, 1.1), "contrast": (0.9, 1.1), "saturation": (0.9, 1.1), "hue": (-0.05, 0.025), "jitter_probability": 0.2,
        "grey_probability": 0.05, "flip_probability": 0.5, "crop_area": (0.8, 0.975), "crop_aspect": (0.875, 1.5), "rotation": (-5, 7.5),
        "scale": (0.95, 1.0625), "shift": 0.05,
    }  # fmt: skip
    assert expected.keys() == {option.name for option in dataclasses.fields(Augmentation)}
    for name, value in expected.items():
        assert getattr(weak, name) == pytest.approx(value), name


def test_views_without_a_crop_stay_without_one():
    weak = augmentation.light_views().scaled(0.5)
    assert weak.crop_area == (1, 1)
    assert weak.crop_aspect == Augmentation.crop_aspect
    assert weak.shift == pytest.approx(1 / 16)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_that_is_no_share_is_refused(strength):
    with pytest.raises(UserError, match="the views' strength is .*: give a share in"):
        Augmentation().scaled(strength)
