"""The gate: what recipes refuse in a sentence, the Python calls refuse too; and nobody's images are written into."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import rocl_transfer as rt
from rocl_transfer import PGD, UserError, evaluate
from rocl_transfer.attacks import APGD, FAB, AttackOptions, Square, untouched
from rocl_transfer.evaluation import FlipOptions, SearchOptions, inspect_model, smallest_epsilon

K = 4
GRADIENT, QUERIES = PGD(8 / 255, steps=3), Square(8 / 255, queries=20)


def call_pgd(model, images, labels):
    return GRADIENT(model, images, labels)


def call_square(model, images, labels):
    return QUERIES(model, images, labels)


def call_evaluate(model, images, labels):
    return evaluate(model, images, labels, attacks=[GRADIENT, QUERIES])


def call_fast(model, images, labels):
    return evaluate(model, images, labels, attacks="fast", epsilon=1 / 255)


def call_smallest(model, images, labels):
    return smallest_epsilon(model, images, labels, FlipOptions(steps=2), precision=0.5)


DOORS = pytest.mark.parametrize("door", [call_pgd, call_square, call_evaluate, call_fast, call_smallest])
SOME = pytest.mark.parametrize("door", [call_pgd, call_square, call_evaluate, call_smallest])


def network(size=8, channels=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * (size - 2) ** 2, K)).eval()


def data(model, n=6, size=8):
    images = torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return images, model(images).argmax(1)


def given(found):
    """What a door gave, as something to compare."""
    return found if isinstance(found, torch.Tensor) else torch.tensor([e.accuracy for e in found.evaluations])


class InPlace(nn.Module):
    """Normalises the very tensor that it is given, as torchvision's normalize(inplace=True) does."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images.sub_(0.5).div_(0.25))


class OutOfPlace(InPlace):
    def forward(self, images):
        return self.model((images - 0.5) / 0.25)


@DOORS
def test_a_model_that_normalises_in_place_is_one_that_does_not(door):
    images, labels = data(OutOfPlace(network()))
    before = images.clone()
    torch.manual_seed(3)
    found = door(InPlace(network()), images, labels)
    assert torch.equal(images, before)
    torch.manual_seed(3)
    assert torch.equal(given(found), given(door(OutOfPlace(network()), images, labels)))


def test_such_a_model_is_neither_random_nor_without_gradient_and_bf16_search_takes_it_too():
    images, labels = data(OutOfPlace(network()))
    seen = inspect_model(InPlace(network()).eval(), images, labels)
    assert (seen.random, seen.zero_gradients, seen.warnings) == (False, 0.0, ())
    before = images.clone()
    search = SearchOptions(search_precision="bf16")
    rough = [evaluate(kind(network()), images, labels, attacks=[APGD(0.01, steps=5)], search=search) for kind in (InPlace, OutOfPlace)]
    assert rough[0].verdicts == rough[1].verdicts
    assert torch.equal(images, before)


class Scribbler(nn.Module):
    """Blackens what it was shown once it has answered."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        logits = self.model(images * 1.0)
        with torch.no_grad():
            images.zero_()
        return logits


@DOORS
@pytest.mark.parametrize("kind", ["leaf", "bytes", "inference"])
def test_the_callers_images_are_never_written_into(door, kind):
    model = network()
    images, labels = data(model)
    if kind == "leaf":
        images.requires_grad_()
    elif kind == "bytes" and door in (call_evaluate, call_fast):
        images = (images * 255).byte()
    before = images.detach().clone()
    with torch.inference_mode(kind == "inference"):
        door(Scribbler(model), images, labels)
    assert torch.equal(images.detach(), before)


@SOME
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_whole_numbers_of_any_width_are_labels(door, dtype):
    model = network()
    images, labels = data(model)
    torch.manual_seed(0)
    wanted = given(door(model, images, labels))
    torch.manual_seed(0)
    assert torch.equal(given(door(model, images, labels.to(dtype))), wanted)
    torch.manual_seed(0)
    assert torch.equal(given(door(model, images, labels.tolist())), wanted)


@SOME
@pytest.mark.parametrize("kind", ["double model", "double images", "half images", "grad mode off"])
def test_float64_and_half_models_and_images_are_accepted(door, kind):
    model = network()
    images, labels = data(model)
    if kind == "double model":
        model = network().double()
    elif kind == "double images":
        images = images.double()
    elif kind == "half images":
        images = images.half()
    with torch.set_grad_enabled(kind != "grad mode off"):
        assert given(door(model, images, labels)).isfinite().all() or door is call_smallest


@SOME
@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (torch.zeros(6), "labels are float32 of shape (6,): give whole class numbers"),
        (torch.eye(6, K), "labels.argmax(1) makes them of one-hot rows"),
        (torch.zeros(6, 1, dtype=torch.long), "of shape (6, 1)"),
        (torch.full((6,), K), "labels run from 4 to 4, the model has 4 classes, 0 and up"),
        (torch.full((6,), -100), "labels run from -100 to -100"),
        (["cat"] * 6, "labels are not class numbers"),
    ],
)
def test_labels_that_are_none_are_one_sentence(door, labels, sentence):
    model = network()
    with pytest.raises(UserError) as caught:
        door(model, data(model)[0], labels)
    assert sentence in str(caught.value)


@SOME
@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (np.zeros((6, 3, 8, 8), dtype=np.float32), "images are a ndarray: give a torch tensor"),
        (torch.zeros(6, 3, 8, 8, dtype=torch.long), "int64: give uint8, or floats|int64: give floats in [0, 1]"),
        (torch.zeros(6, 8, 8), "images[None] makes one image a batch"),
        (torch.full((6, 3, 8, 8), 8.0), "outside [0, 1]|in [0, 1]"),
        (torch.full((6, 3, 8, 8), float("nan")), "in [0, 1]"),
    ],
)
def test_images_that_are_none_are_one_sentence(door, images, sentence):
    with pytest.raises(UserError) as caught:
        door(network(), images, torch.zeros(6, dtype=torch.long))
    assert any(part in str(caught.value) for part in sentence.split("|"))


class Gives(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.model, self.change = network(), change

    def forward(self, images):
        return self.change(self.model(images), images)


@SOME
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda logits, images: (logits, images),
            "gives a tuple of (2, 4), (2, 3, 8, 8) for 2 images|gives a tuple of (6, 4), (6, 3, 8, 8) for 6 images",
        ),
        (lambda logits, images: {"logits": logits, "features": images}, "gives a dict of logits, features"),
        (lambda logits, images: [logits], "gives a list of ("),
        (lambda logits, images: logits.argmax(1), "gives int64 ("),
        (lambda logits, images: logits[0], "gives (4,) for"),
        (lambda logits, images: logits[:, :1], "it must give logits ("),
        (lambda logits, images: logits[..., None], "4, 1) for"),
        (lambda logits, images: None, "gives NoneType for"),
        (lambda logits, images: logits / 0, "logits are not finite"),
    ],
)
def test_what_is_no_logits_is_one_sentence(door, change, sentence):
    images, labels = data(network())
    with pytest.raises(UserError) as caught:
        door(Gives(change), images, labels)
    assert any(part in str(caught.value) for part in sentence.split("|"))


class Needs(nn.Module):
    """A network whose forward takes more than images."""

    def forward(self, images, mask):
        return images.mean((2, 3)) * mask


class Devices(nn.Module):
    def forward(self, images):
        return images.mean((2, 3)) + torch.zeros(3, device="meta")


class Fails(nn.Module):
    def forward(self, images):
        raise KeyError("no")


@SOME
@pytest.mark.parametrize(
    ("model", "advice", "never"),
    [
        (network(8).half(), "its weights are float16 and images come in float32, so give model.float()", "image_size"),
        (network(8).bfloat16(), "its weights are bfloat16", "image_size"),
        (Needs(), "its forward must take images alone", "image_size"),
        (Devices(), "its parts lie on different devices", "image_size"),
        (network(8, channels=1), "it takes 1 channels and was given 3", "image_size"),
        (Fails(), "'no'", "image_size"),
        (nn.Module(), "forward", "image_size"),
        (network(32), "it takes 32 px, so give images of that size", "float"),
        (nn.Sequential(nn.MaxPool2d(32), network(2 + 1)), "it takes 96 px", "float"),
        (nn.Sequential(nn.Flatten(), nn.Linear(7, K)), "does not take images of (3, 8, 8)", "data.image_size"),
    ],
)
def test_advice_follows_from_the_cause(door, model, advice, never):
    images = torch.rand(6, 3, 8, 8)
    with pytest.raises(UserError) as caught:
        door(model, images, torch.zeros(6, dtype=torch.long))
    assert advice in str(caught.value)
    assert never not in str(caught.value)
    assert "\n" not in str(caught.value)


@SOME
def test_a_function_in_place_of_a_module_is_refused(door):
    model = network()
    with pytest.raises(UserError, match=r"the model is a function: give a torch\.nn\.Module"):
        door(lambda images: model(images), *data(model))


@pytest.mark.parametrize("epsilon", [8.0, 8, 1.5, torch.tensor([0.1, 4.0]).view(2, 1, 1, 1)])
def test_an_epsilon_of_bytes_is_refused_with_the_fraction(epsilon):
    model = network()
    images, labels = data(model)
    calls = [lambda: rt.PGD(epsilon=epsilon, steps=20)]
    if not isinstance(epsilon, torch.Tensor):
        calls += [
            lambda: APGD(epsilon), lambda: FAB(epsilon), lambda: Square(epsilon), lambda: rt.evaluate(model, images, labels, epsilon=epsilon),
            lambda: rt.evaluate(model, images, labels, attacks="standard", epsilon=epsilon),
        ]  # fmt: skip
    for call in calls:
        with pytest.raises(UserError, match="write 8/255 rather than 8"):
            call()
    PGD(1.0)
    PGD(8.0, norm="l2")
    PGD(80.0, norm="l1")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"attacks": "standard", "norm": "l7"}, "there is no threat model 'l7'"),
        ({"attacks": "standard", "norm": "Linf"}, "did you mean 'linf'"),
        ({"attacks": "standard", "epsilon": 0}, "above 0"),
        ({"attacks": ["standard"]}, "give one name, such as 'standard', or attacks"),
        ({"samples": torch.tensor([0, 6])}, "from 0 to 5"),
        ({"samples": torch.tensor([1, 1])}, "different whole numbers"),
        ({"samples": torch.ones(6, dtype=torch.bool)}, "not positions among 6 images"),
    ],
)
def test_arguments_that_cannot_be_meant_are_one_sentence(change, sentence):
    model = network()
    with pytest.raises(UserError) as caught:
        evaluate(model, *data(model), **change)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"engine": "referense"}, "did you mean 'reference'"),
        ({"search_precision": "float32"}, "give fp32 or bf16"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"engine": "reference", "compile": True}, "has no effect with --engine reference"),
    ],
)
def test_search_options_that_cannot_be_meant_are_one_sentence(change, sentence):
    with pytest.raises(UserError) as caught:
        SearchOptions(**change)
    assert sentence in str(caught.value)


def test_one_attack_alone_and_positions_as_a_list_are_taken():
    model = network()
    images, labels = data(model)
    found = evaluate(model, images, labels, attacks=GRADIENT, samples=[4, 1])
    assert [line["index"] for line in found.verdicts] == [1, 4]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: PGD(8 / 255, steps=-1), "the number of steps of PGD is -1: give a whole number, 0 or more"),
        (lambda: PGD(8 / 255, steps=2.5), "the number of steps of PGD is 2.5"),
        (lambda: PGD(8 / 255, restarts=0), "the number of restarts of PGD is 0: give a whole number, 1 or more"),
        (lambda: PGD(8 / 255, step_size=2), "step_size is 2: pixels are in .0, 1., so write 2/255 rather than 2"),
        *((lambda step=step: PGD(8 / 255, step_size=step), "give a length above 0, such as 2/255") for step in (-0.01, 0, math.nan)),
        (lambda: PGD(8, norm="l2", step_size=math.inf), "step_size is inf: give a length above 0"),
        (lambda: PGD(torch.full((2, 1, 1, 1), 0.1), step_size=torch.tensor([0.1, -0.1]).view(2, 1, 1, 1)), "give a length above 0"),
        (lambda: AttackOptions(step_size=2), "step_size is 2: pixels are in .0, 1., so write 2/255 rather than 2"),
        *((lambda step=step: AttackOptions(step_size=step), "give a length above 0") for step in (-0.01, 0, math.nan)),
        *((lambda n=n: APGD(0.1, **{n: 0}), f"the number of {n} of APGD is 0: give a whole number, 1 or more") for n in ("steps", "restarts")),
        (lambda: APGD(0.1, targets=-1), "the number of targets of APGD is -1: give a whole number, 0 or more"),
        *((lambda n=n: FAB(0.1, **{n: 0}), f"the number of {n} of FAB is 0: give a whole number, 1 or more") for n in ("steps", "targets")),
        *((lambda n=n: Square(0.1, queries=n), "the number of queries of Square") for n in (0, -5, math.nan)),
        *((lambda kind=kind: kind(math.inf, "l2"), "epsilon is inf: give a radius above 0") for kind in (APGD, FAB, Square)),
    ],
)
def test_attacks_that_are_none_are_one_sentence(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()


@pytest.mark.parametrize("attack", [APGD(0.1, steps=2, targets=9), FAB(0.1, steps=2)])
def test_more_targets_than_wrong_classes_are_one_sentence(attack):
    model = network()
    with pytest.raises(UserError, match=r"9 targets are more than the model's 3 wrong classes: give targets=3 or fewer"):
        evaluate(model, *data(model), attacks=[attack])


def test_a_step_of_any_length_is_taken_where_it_can_be_meant():
    PGD(0.1, step_size=-1.0, steps=0)  # which takes none
    PGD(3.0, norm="l2", step_size=2)
    AttackOptions(norm="l2", epsilon=3.0, step_size=2)


def test_radii_and_generators_must_fit_the_images():
    model = network()
    images, labels = data(model)
    with pytest.raises(UserError, match=r"one per image as \(6, 1, 1, 1\)"):
        PGD(torch.full((6,), 0.1))(model, images, labels)  # which would be a radius for each column of pixels
    with pytest.raises(UserError, match="4 generators do not share 6 images"):
        PGD(0.1)(model, images, labels, [torch.Generator() for _ in range(4)])


def test_a_surrogate_that_writes_into_its_input_changes_nobodys_images():
    from rocl_transfer.attacks.transfer import Transfer

    model = network()
    images, labels = data(model)
    before = images.clone()
    evaluate(model, images, labels, attacks=[Transfer(Scribbler(network()), PGD(0.05, steps=3), "transfer")])
    assert torch.equal(images, before)


def test_a_model_that_is_untouched_already_is_not_wrapped_again():
    model = untouched(network())
    assert untouched(model) is model
