"""What nobody gave follows the images' size."""

import dataclasses
import logging
import re
from fractions import Fraction

import pytest
import yaml

import finetune
from evaluate import EvaluateConfig
from finetune import FinetuneConfig
from linear_probe import ProbeConfig
from pretrain import PretrainConfig
from robustify import RobustifyConfig, resolved
from rocl_transfer import UserError
from rocl_transfer.config import note_radius, parse, sized, with_earlier_defaults
from rocl_transfer.config.presets import BORDER
from rocl_transfer.data import ImageOptions
from rocl_transfer.hub import ModelOptions
from rocl_transfer.models import create_backbone
from rocl_transfer.options import Number, write_options
from tests.conftest import ROOT

WORDS = ["--data.name", "x", "--model.name", "resnet50", "--output_dir"]
OF_224 = ROOT / "recipes" / "configs" / "finetune_224px.yaml"


def attack(config):
    options = config.attack
    return Fraction(float(options.epsilon)).limit_denominator(255), options.steps, pytest.approx(options.step)


@pytest.fixture
def words(tmp_path):
    return [*WORDS, str(tmp_path / "run")]


@pytest.mark.parametrize("size", [16, 32, 64, 84])
def test_small_images_have_the_preset_for_32_px(words, caplog, size):
    caplog.set_level(logging.INFO, "rocl_transfer")
    config = sized(parse(FinetuneConfig, words), size)
    assert config == parse(FinetuneConfig, words)
    assert (*attack(config), config.batch_size) == (Fraction(8, 255), 10, 2.5 * 10 / 11 * 8 / 255, 128)
    assert f"images of {size} px: the preset for 32 px is taken (attack.epsilon 8/255" in caplog.text


@pytest.mark.parametrize("size", [85, 96, 160, 224, 384])
def test_photographs_have_another_one_and_it_is_said(words, caplog, size):
    caplog.set_level(logging.INFO, "rocl_transfer")
    config = sized(parse(FinetuneConfig, words), size)
    assert (*attack(config), config.batch_size) == (Fraction(4, 255), 3, 2 / 255, 64)
    assert [attack.epsilon for attack in config.evaluation.against(config.attack).attacks()] == pytest.approx([2 / 255, 4 / 255, 8 / 255])
    (said,) = (record.message for record in caplog.records)
    assert said == (
        f"images of {size} px: the preset for 224 px is taken (attack.epsilon 4/255, attack.step_size 2/255, attack.steps 3, "
        "augmentation.crop_area [0.25, 1], batch_size 64), where nothing else is given"
    )
    assert BORDER == 85  # the geometric mean of 32 and 224


def test_the_preset_is_that_of_the_configuration_for_224_px(words):
    written = yaml.safe_load(OF_224.read_text())
    by_size, by_file = sized(parse(FinetuneConfig, words), 224), parse(FinetuneConfig, ["--config", str(OF_224), *words])
    assert sized(by_file, 224) == by_file
    assert written.keys() == {"data", "method", "attack", "augmentation", "epochs", "batch_size"}  # all but data and epochs follow the size
    assert by_size.attack == by_file.attack
    assert (by_size.augmentation, by_size.batch_size, by_size.method) == (by_file.augmentation, by_file.batch_size, by_file.method)


GIVEN = {
    "epsilon, even the small preset's": (["--attack.epsilon", "8/255"], lambda c: (*attack(c), c.batch_size), (Fraction(8, 255), 3, 4 / 255, 64)),
    "steps": (["--attack.steps", "10"], lambda c: attack(c), (Fraction(4, 255), 10, 2.5 * 10 / 11 * 4 / 255)),
    "step size": (["--attack.step_size", "1/255"], lambda c: attack(c), (Fraction(4, 255), 10, 1 / 255)),
    "batch": (["--batch_size", "128"], lambda c: c.batch_size, 128),
    "crop": (["--augmentation.crop_area", "[1, 1]"], lambda c: c.augmentation.crop_area, (1, 1)),
    "another norm": (["--attack.norm", "l2", "--attack.epsilon", "3"], lambda c: (c.attack.epsilon, c.attack.step, c.attack.steps), (3, 1.5, 3)),
}


@pytest.mark.parametrize("case", GIVEN)
def test_options_that_are_given_win_over_presets(words, case):
    more, read, expected = GIVEN[case]
    assert read(sized(parse(FinetuneConfig, [*words, *more]), 224)) == expected


def test_a_resolved_configuration_repeats_itself(words, tmp_path):
    config = sized(parse(FinetuneConfig, words), 224)
    write_options(config, tmp_path / "config.yaml")
    again = parse(FinetuneConfig, ["--config", str(tmp_path / "config.yaml")])
    assert sized(again, 224) == sized(again, 32) == config


def test_a_resumed_run_keeps_what_it_began_with(words, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    write_options(parse(FinetuneConfig, words), tmp_path / "run" / "config.yaml")  # of a version that knew one size
    config = sized(parse(FinetuneConfig, words), 224)
    assert (*attack(config), config.batch_size) == (Fraction(8, 255), 10, 2.5 * 10 / 11 * 8 / 255, 128)
    assert config == parse(FinetuneConfig, words)
    for other in ("--overwrite", "--resume=none"):
        assert sized(parse(FinetuneConfig, [*words, other]), 224).batch_size == 64


@pytest.mark.parametrize("size", [16, 224])
def test_a_run_from_before_steps_could_fall_keeps_its_share_of_the_radius(words, tmp_path, size):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    more = ["--attack.steps", "4"]  # with which the preset leaves the step alone
    write_options(parse(FinetuneConfig, [*words, *more, "--attack.step_size", "null"]), tmp_path / "run" / "config.yaml")
    config = sized(parse(FinetuneConfig, [*words, *more]), size)
    assert config.attack.step_size is None
    assert config.attack.step == pytest.approx(8 / 255 * 0.007 / 0.0314)
    assert sized(parse(FinetuneConfig, [*words, *more, "--attack.step_size", "auto"]), size).attack.falls
    assert sized(parse(FinetuneConfig, [*words, *more, "--overwrite"]), size).attack.falls


def test_a_resumed_robustify_keeps_its_earlier_step_size(words, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    write_options(parse(RobustifyConfig, [*words, "--attack.step_size", "null"]), tmp_path / "run" / "config.yaml")
    assert with_earlier_defaults(parse(RobustifyConfig, words)).attack.step_size is None
    assert with_earlier_defaults(parse(RobustifyConfig, [*words, "--attack.step_size", "auto"])).attack.falls
    assert with_earlier_defaults(parse(RobustifyConfig, [*words, "--overwrite"])).attack.falls
    run = tmp_path / "run"
    for named in (run, run / "checkpoints" / "step-4"):
        other = ["--output_dir", str(tmp_path / "new"), "--resume", str(named)]
        assert with_earlier_defaults(parse(RobustifyConfig, [*words, *other])).attack.step_size is None
    assert with_earlier_defaults(parse(RobustifyConfig, [*words, "--output_dir", str(tmp_path / "new")])).attack.falls


DECAYS = {None: 0.05, "adamw": 0.05, "lion": 0.05, "momentum": 5e-4, "sgd": 5e-4, "adam": 5e-4, "lars": 5e-4}


@pytest.mark.parametrize(("name", "decay"), DECAYS.items())
def test_a_decay_made_for_one_optimiser_is_not_handed_to_another(words, caplog, name, decay):
    caplog.set_level(logging.INFO, "rocl_transfer")
    rate = [] if name is None else ["--optimizer.name", name, "--optimizer.lr", "0.1"]
    classifier = create_backbone("resnet8_cifar", 16)
    assert finetune.resolved(parse(FinetuneConfig, [*words, *rate]), classifier, False).optimizer.weight_decay == decay
    assert f"{name or 'adamw'}, learning rate {'0.1' if name else '0.001'}, weight decay {decay:g}" in caplog.text
    twin = resolved(parse(RobustifyConfig, [*words, *rate]), classifier, 32).optimizer
    assert twin.weight_decay == (1e-4 if decay == 0.05 else 5e-4)
    given = parse(FinetuneConfig, [*words, *rate, "--optimizer.weight_decay", "0.03"])
    assert finetune.resolved(given, classifier, False).optimizer.weight_decay == 0.03


def test_a_resumed_run_keeps_the_decay_that_it_began_with(words, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    rate, classifier = ["--optimizer.name", "momentum", "--optimizer.lr", "0.1"], create_backbone("resnet8_cifar", 16)
    write_options(parse(FinetuneConfig, [*words, *rate, "--optimizer.weight_decay", "0.05"]), tmp_path / "run" / "config.yaml")
    for more, decay in (([], 0.05), (["--overwrite"], 5e-4), (["--optimizer.weight_decay", "0.1"], 0.1)):
        config = sized(parse(FinetuneConfig, [*words, *rate, *more]), 16)
        assert finetune.resolved(config, classifier, False).optimizer.weight_decay == decay


def views(config, size):
    student = create_backbone("resnet8_cifar", 16)
    return resolved(config, student, size).views


@pytest.mark.parametrize("size", [32, 224])
def test_views_that_are_given_in_part_are_laid_over_the_default_of_their_size(words, tmp_path, size):
    default = views(parse(RobustifyConfig, words), size)
    assert (default.jitter_probability, default.crop_area, default.shift) == (0, (1, 1), 1 / 8 if size == 32 else 0)
    (tmp_path / "views.yaml").write_text("views: {flip_probability: 0}\n")
    for more in (["--views.flip_probability", "0"], ["--views", "{flip_probability: 0}"], ["--config", str(tmp_path / "views.yaml")]):
        assert views(parse(RobustifyConfig, [*words, *more]), size) == dataclasses.replace(default, flip_probability=0)
    both = parse(RobustifyConfig, [*words, "--config", str(tmp_path / "views.yaml"), "--views.shift", "1/4"])
    assert views(both, size) == dataclasses.replace(default, flip_probability=0, shift=1 / 4)
    with pytest.raises(UserError, match="--views.crop_aspect has no effect without a crop"):
        views(parse(RobustifyConfig, [*words, "--views.crop_aspect", "[1, 2]"]), size)


def test_views_that_are_given_as_a_whole_are_what_they_were(words, tmp_path):
    file = ROOT / "recipes" / "configs" / "digits_robustify.yaml"
    config = parse(RobustifyConfig, ["--config", str(file), *words])
    assert views(config, 16) == views(config, 224) == config.views
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)  # of a run from before, with the class's own values for what was not given
    more = [*words, "--views.flip_probability", "0"]
    write_options(parse(RobustifyConfig, more), tmp_path / "run" / "config.yaml")
    assert views(parse(RobustifyConfig, more), 32).jitter_probability == 0.8
    assert views(parse(RobustifyConfig, [*more, "--overwrite"]), 32).jitter_probability == 0


def test_pretraining_of_photographs(words, caplog):
    caplog.set_level(logging.INFO, "rocl_transfer")
    config = sized(parse(PretrainConfig, words), 224)
    assert config.objective.attack.epsilon == pytest.approx(4 / 255)
    assert (config.batch_size, config.gradient_accumulation_steps, config.part_size) == (256, 4, 64)  # learning rates are made for the whole batch
    assert "(objective.attack.epsilon 4/255, gradient_accumulation_steps 4)" in caplog.text
    control = sized(parse(PretrainConfig, [*words, "--objective.method", "simclr"]), 224)
    assert control.objective == parse(PretrainConfig, [*words, "--objective.method", "simclr"]).objective
    grouped = sized(parse(PretrainConfig, [*words, "--objective.group_size", "128"]), 224)
    assert (grouped.part_size, grouped.objective.group_size) == (256, 128)
    assert sized(parse(PretrainConfig, [*words, "--batch_size", "32"]), 224).gradient_accumulation_steps == 1
    assert sized(parse(PretrainConfig, words), 32) == parse(PretrainConfig, words)


def test_probes_of_photographs(words):
    clean, robust = (sized(parse(ProbeConfig, [*words, "--robust", value]), 224) for value in ("false", "true"))
    assert clean.evaluation.epsilons == robust.evaluation.epsilons == pytest.approx((4 / 255, 8 / 255))
    assert (clean.batch_size, clean.part_size) == (1024, 1024)  # of features
    assert (robust.batch_size, robust.part_size, float(robust.attack.epsilon)) == (1024, 64, pytest.approx(4 / 255))
    given = sized(parse(ProbeConfig, [*words, "--evaluation.epsilons", "[8/255]"]), 224)
    assert given.evaluation.epsilons == (Number(8 / 255),)
    l2 = sized(parse(ProbeConfig, [*words, "--evaluation.norm", "l2", "--evaluation.epsilons", "[1]"]), 224)
    assert l2.evaluation.epsilons == (1,)


@pytest.mark.parametrize(
    ("size", "more", "said"),
    [(224, [], True), (32, [], False), (224, ["--epsilon", "8/255"], False), (224, ["--norm", "l2", "--epsilon", "3"], False)],
)
def test_an_evaluation_says_that_its_radius_is_for_small_images(words, caplog, size, more, said):
    caplog.set_level(logging.INFO, "rocl_transfer")
    note_radius(parse(EvaluateConfig, [*words, *more]), size)
    assert ("epsilon 8/255 is usual at 32 px, 4/255 for photographs of 224 px: --epsilon sets it" in caplog.text) == said


CONFIGS = ROOT / "recipes" / "configs"
OF_PHOTOGRAPHS = {
    "rocl_64px.yaml": (PretrainConfig, 64, ["--data.name", "x"], 8 / 255),
    "rocl_96px.yaml": (PretrainConfig, 96, ["--data.name", "x"], 4 / 255),
    "imagenet_rocl_resnet50.yaml": (PretrainConfig, 224, [], 4 / 255),
    "imagenet_fare_clip_vit_b32.yaml": (RobustifyConfig, 224, [], 4 / 255),
}


@pytest.mark.parametrize("name", OF_PHOTOGRAPHS)
def test_a_configuration_for_photographs_is_read_and_leaves_no_size_dependent_option_open(tmp_path, caplog, name):
    kind, size, more, epsilon = OF_PHOTOGRAPHS[name]
    config = parse(kind, ["--config", str(CONFIGS / name), *more, "--output_dir", str(tmp_path / "run")])
    assert config.data.image_size == size
    attack = getattr(config, "objective", config).attack
    assert (attack.norm, attack.epsilon) == ("linf", pytest.approx(epsilon))
    assert config.data.streaming == (size == 224)
    if kind is PretrainConfig:
        assert sized(config, size) == config
    assert {"Command", "Hardware", "Cost"} <= set(re.findall(r"^# (\w+)[:,]", (CONFIGS / name).read_text(), re.M))


def test_a_few_steps_of_a_configuration_take_a_small_batch(tmp_path):
    for name in ("rocl_64px.yaml", "rocl_96px.yaml", "imagenet_rocl_resnet50.yaml"):
        words = ["--config", str(CONFIGS / name), "--data.name", "x", "--batch_size", "8", "--objective.group_size", "8"]
        config = parse(PretrainConfig, [*words, "--max_steps", "3", "--output_dir", str(tmp_path / "run")])
        assert (config.part_size, config.group) == (8, 8)


def test_a_configuration_made_in_python_is_left_as_it_is(words):
    config = FinetuneConfig(data=ImageOptions(name="x"), model=ModelOptions(name="y"), output_dir="a")
    assert sized(config, 224) is config


@pytest.mark.parametrize("parts", ["2", "64"])
def test_a_batch_that_is_computed_in_parts_stays(words, parts):
    config = sized(parse(FinetuneConfig, [*words, "--gradient_accumulation_steps", parts]), 224)
    assert (config.batch_size, config.part_size) == (128, 128 // int(parts))  # 64 in 64 parts would leave BatchNorm one image
