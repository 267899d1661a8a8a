import dataclasses
import re
from pathlib import Path

import pytest
import yaml

import quickstart
from compare import CompareConfig
from convert import ConvertConfig
from demo import DemoConfig
from evaluate import EvaluateConfig
from finetune import FinetuneConfig
from linear_probe import ProbeConfig
from predict import PredictConfig
from pretrain import PretrainConfig
from publish import PublishConfig
from quickstart import QuickstartConfig
from robustify import RobustifyConfig
from rocl_transfer import UserError
from rocl_transfer.config import parse, sized
from rocl_transfer.config.cli import _parser_of
from rocl_transfer.config.sentences import wanted
from rocl_transfer.options import write_options

BASE = ["--output_dir", "runs/x", "--data.name", "digits", "--model.name", "resnet18_cifar"]


def pretrain(*words):
    return parse(PretrainConfig, [*BASE, *words])


def probe(*words):
    return parse(ProbeConfig, [*BASE, *words])


def test_defaults_are_the_papers_but_for_the_step_size():
    config = pretrain()
    assert (config.epochs, config.batch_size) == (1000, 256)
    attack = config.objective.attack
    assert (attack.norm, attack.epsilon, attack.step_size, attack.steps) == ("linf", 0.0314, "auto", 7)
    assert pretrain("--objective.attack.step_size", "null").objective.attack.step == 0.007
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.weight_decay) == ("lars", 1.5, 1e-6)
    head = probe("--robust", "true")
    assert (head.epochs, head.batch_size, head.attack.steps, head.attack.step_size) == (150, 1024, 10, "auto")
    assert (head.optimizer.name, head.optimizer.lr, head.optimizer.weight_decay) == ("momentum", 0.1, 5e-4)


def test_fractions_and_scientific_numbers(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("optimizer: {lr: 1e-3}\nobjective: {attack: {epsilon: 8/255}}\nviews: {crop_area: [1/4, 1]}\n")
    config = pretrain("--config", str(file))
    assert config.optimizer.lr == 1e-3
    assert config.objective.attack.epsilon == 8 / 255
    assert config.views.crop_area == (0.25, 1)


def test_overrides_win_and_a_radius_moves_its_step(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("epochs: 5\nobjective: {attack: {epsilon: 0.1}}\n")
    config = pretrain("--config", str(file), "--epochs", "7")
    assert config.epochs == 7
    assert config.objective.attack.step == pytest.approx(2.5 * 7 / 8 * 0.1)


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--output_dir", "1e5"),
        ("--log_with=-1e-05",),
        ("--objective.attack.epsilon", "8/255", "--views.hue", "[0, 0]"),
        ("--objective.method", "simclr"),
    ],
)
def test_a_resolved_configuration_is_fed_back_as_it_is(tmp_path, words):
    config = pretrain(*words)
    write_options(config, tmp_path / "config.yaml")
    assert parse(PretrainConfig, ["--config", str(tmp_path / "config.yaml")]) == config
    assert set(yaml.safe_load((tmp_path / "config.yaml").read_text())) == {f.name for f in dataclasses.fields(config)}


def test_one_step_is_recorded_and_fed_back(tmp_path):
    words = ["--output_dir", "runs/x", "--data.name", "digits", "--model.name", "resnet18_cifar", "--attack.kind", "nfgsm"]
    config = parse(FinetuneConfig, words)
    assert (config.attack.steps, config.attack.step) == (1, 8 / 255)
    write_options(config, tmp_path / "config.yaml")
    assert parse(FinetuneConfig, ["--config", str(tmp_path / "config.yaml")]) == config
    with pytest.raises(UserError, match="--attack.steps 5 has no effect with --attack.kind nfgsm, which takes one: leave it out, or give kind pgd"):
        parse(FinetuneConfig, [*words, "--attack.steps", "5"])
    with pytest.raises(UserError, match="no effect with --method standard"):
        parse(FinetuneConfig, [*words, "--method", "standard"])
    large = sized(config, 224)
    assert (large.attack.kind, large.attack.epsilon, large.attack.step, large.attack.steps) == ("nfgsm", 4 / 255, 4 / 255, 1)


@pytest.mark.parametrize("words", [["--attack.steps", "50"], ["--attack.step_size", "0.01"]])
def test_steps_of_no_attack_are_refused(tmp_path, words):
    base = [*BASE, "--method", "standard"]
    with pytest.raises(UserError, match="--attack.steps and --attack.step_size have no effect with --method standard: leave them out"):
        parse(FinetuneConfig, [*base, *words])
    assert parse(FinetuneConfig, [*base, "--attack.epsilon", "0.1"]).attack.epsilon == 0.1  # which is measured against
    for size in (32, 224):
        config = sized(parse(FinetuneConfig, base), size)
        write_options(config, tmp_path / "config.yaml")
        assert parse(FinetuneConfig, ["--config", str(tmp_path / "config.yaml")]) == config


@pytest.mark.parametrize("words", [["--samples", "1"], ["--evaluation.steps", "3"], ["--evaluation.epsilons", "[0.1]"], ["--monitor_every", "7"]])
def test_a_stream_leaves_nothing_to_measure(words):
    base = [*BASE[:2], "--data.name", "x", *BASE[4:], "--data.streaming", "--data.image_size", "32"]
    assert parse(RobustifyConfig, base).data.streaming
    with pytest.raises(UserError, match=f"{words[0].split('.')[0]} has no effect with --data.streaming true"):
        parse(RobustifyConfig, [*base, *words])
    if words[0] == "--monitor_every":
        with pytest.raises(UserError, match="--monitor_every has no effect with --data.streaming true"):
            parse(PretrainConfig, [*base, *words])


def test_a_default_warm_up_is_a_quarter_of_the_epochs_at_most(caplog):
    for epochs, warmup in ((1, 0), (2, 1), (5, 2), (28, 7), (40, 10), (1000, 10)):
        config = pretrain("--epochs", str(epochs))
        assert config.optimizer.warmup_epochs == warmup
        rates = [config.optimizer.over(epochs)(epoch) for epoch in range(epochs)]
        assert max(rates) > 1.4  # of a peak of 1.5
    assert pretrain("--epochs", "5").optimizer.words == "lars, learning rate 1.5, weight decay 1e-06, 2 epochs of warm-up"
    assert pretrain("--epochs", "5", "--optimizer.warmup_epochs", "4").optimizer.warmup_epochs == 4
    for configuration in (PretrainConfig, ProbeConfig, FinetuneConfig, RobustifyConfig):
        with pytest.raises(UserError, match="--optimizer.warmup_epochs 5(.0)? is not below --epochs 5: lower it"):
            parse(configuration, [*BASE, "--epochs", "5", "--optimizer.warmup_epochs", "5"])


def test_a_resumed_run_keeps_its_warm_up(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    words = ["--output_dir", str(tmp_path / "run"), *BASE[2:], "--epochs", "5"]
    config = pretrain(*words)
    began = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, warmup_epochs=10))
    write_options(began, tmp_path / "run" / "config.yaml")
    assert sized(pretrain(*words), 32).optimizer.warmup_epochs == 10
    assert pretrain("--config", str(tmp_path / "run" / "config.yaml"), *words) == began
    assert sized(pretrain(*words, "--overwrite"), 32).optimizer.warmup_epochs == 2


def test_a_short_quick_start_has_a_short_warm_up(monkeypatch, tmp_path):
    seen = {28: [], 6: []}
    monkeypatch.setattr(quickstart, "table", lambda folder: "")
    monkeypatch.setattr(quickstart.linear_probe, "main", lambda config: None)
    for epochs, found in seen.items():
        monkeypatch.setattr(quickstart.pretrain, "main", lambda config, found=found: found.append(config.optimizer.warmup_epochs))
        quickstart.main(QuickstartConfig(output_dir=str(tmp_path), epochs=epochs))
    assert seen == {28: [8, 8], 6: [2, 2]}


@pytest.mark.parametrize("form", ["table", "file", "equals"])
def test_a_method_within_a_table_brings_its_own_options(tmp_path, form):
    (tmp_path / "objective.yaml").write_text("method: acl\n")
    table = "{method: acl}"
    words = {"table": ["--objective", table], "file": ["--objective", str(tmp_path / "objective.yaml")], "equals": [f"--objective={table}"]}[form]
    assert pretrain(*words).objective == pretrain("--objective.method", "acl").objective
    assert pretrain(*words, "--objective.method", "dynacl").objective == pretrain("--objective.method", "dynacl").objective


def test_print_config(capsys):
    with pytest.raises(SystemExit) as ended:
        pretrain("--print_config")
    assert ended.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["objective"]["attack"]["epsilon"] == 0.0314


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--batchsize", "3"], "unknown option --batchsize; did you mean 'batch_size'?"),
        (["--objective.atack.epsilon", "3"], "unknown option --objective.atack.epsilon; did you mean 'objective.attack.epsilon'?"),
        (["stray"], "unknown option stray; --help lists them all"),
        (["--epochs", "x"], "--epochs is x: give a whole number"),
        (["--epochs", "0"], "--epochs is 0: give 1 or more"),
        (["--objective.attack.epsilon", "eight"], "--objective.attack.epsilon is eight: give a number or a fraction such as 8/255"),
        (["--objective.attack.epsilon", "8"], "pixels are in [0, 1], so write 8/255 rather than 8"),
        (["--objective.attack.epsilon", "1/0"], "a number or a fraction"),
        (["--objective.attack.norm", "l2"], "give a radius with l2"),
        (["--objective.attack.kind", "nfgsm", "--objective.attack.steps", "3"], "--objective.attack.steps 3 has no effect with"),
        (["--objective.attack.kind", "nfgsm", "--objective.attack.first_steps", "1"], "--attack.first_steps has no effect with --attack.kind nfgsm"),
        (["--objective.attack.first_steps", "7"], "first_steps is 7: give 1 or more, and fewer than its 7 steps"),
        (["--optimizer.name", "kron"], "choose another"),
        (["--objective.attack.norm", "l7"], "--objective.attack.norm is l7: give one of 'linf', 'l2'"),
        (
            ["--objective.method", "simclr", "--objective.attack.epsilon", "8/255"],
            "--objective.attack has no effect with --objective.method simclr",
        ),
        (["--data.revision", "main"], "--data.revision has no effect with the bundled digits"),
        (["--objective.group_size", "7"], "--objective.group_size 7 must be 2 or more and divide --batch_size 256"),
        (["--optimizer.name", "larz"], "not one of timm's optimisers; did you mean 'lars'?"),
        (["--optimizer.name", "adamw", "--optimizer.momentum", "0.8"], "--optimizer.momentum has no effect with adamw"),
        (["--optimizer.name", "adamw"], "--optimizer.lr is missing: a rate made for another optimiser is not for adamw"),
        (["--optimizer.warmup_epochs", "0", "--optimizer.warmup_lr", "0.2"], "--optimizer.warmup_lr has no effect"),
        (["--optimizer.milestones", "[0.3]"], "--optimizer.milestones has no effect with --optimizer.schedule cosine"),
        (["--optimizer.schedule", "steps", "--optimizer.milestones", "[0.5, 0.3]"], "rising shares"),
        (["--views.hue", "3"], "--views.hue is 3: give a list"),
        (["--views.brightness", "[1.4, 0.6]"], "give the smaller number first"),
        (["--views.crop_area", "[1, 1]", "--views.crop_aspect", "[1, 2]"], "--views.crop_aspect has no effect without a crop"),
        (["--data.validation_fraction", "1"], "give a share in [0, 1)"),
        (["--seed", "-1"], "--seed is -1"),
        (["--config", "nowhere.yaml"], "there is no file"),
        (["--data.name", "x" * 3001], "more than 3,000 letters"),
        (["--seed", "0x" + "f" * 5000], "more than 3,000 letters"),
        (["--optimizer.lr", "inf"], "--optimizer.lr is inf: give a finite number or a fraction such as 8/255"),
        (["--objective.temperature", "nan"], "--objective.temperature is nan: give a finite number"),
        (["--objective.attack.epsilon", "1e999"], "--objective.attack.epsilon is 1e999: give a finite number"),
        (["--data.split_seed", "-1"], "--data.split_seed is -1: give 0 or more"),
        (["--data.image_size", "100000"], "--data.image_size is 100000: give pixels"),
        (["--data.workers", "100000"], "--data.workers is 100000: give 1 to 1024"),
        (["--optimizer.warmup_lr", "-1"], "--optimizer.warmup_lr is -1.0: give 0 or more"),
        (["--data.image_size", "true"], "--data.image_size is true: give a whole number"),
    ],
)
def test_mistakes_are_one_sentence_with_the_remedy(words, sentence):
    with pytest.raises(UserError) as caught:
        pretrain(*words)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("optimiser: {lr: 1}", "unknown option optimiser.lr"),
        ("epoch: 3", "unknown option epoch"),
        ("a: [", "config"),
        ("seed: " + "[" * 50_000, "nesting depth"),
        ("- " * 50_000, "nesting depth"),
        ("optimizer: &a {lr: *a}", "*a stands for another part of the file"),
        ("seed: 0x" + "f" * 9000, "more than 3,000 letters"),
        ("seed: " + "9" * 2999, "below 2**32"),
        ("batch_size: null", "--batch_size is null"),
        ("optimizer: []", "--optimizer is []: give its options as a table, or each by its own name"),
        ("objective: {attack: 7}", "--objective.attack is 7: give its options as a table"),
        ("optimizer: {warmup_lr: [1]}", "--optimizer.warmup_lr is [1]: give a number or a fraction such as 8/255"),
        ("print_shtab: bash", "unknown option print_shtab"),
        ('data: {name: "x\\0"}', "a character of code 0"),
    ],
)
def test_mistakes_in_a_configuration_file_are_one_sentence(tmp_path, text, sentence):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        pretrain("--config", str(tmp_path / "c.yaml"))
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--optimizer.lr", "abc"], "--optimizer.lr is abc: give a number or a fraction such as 8/255"),
        (["--attack.step_size", "big"], "--attack.step_size is big: give a number or a fraction such as 8/255, or auto"),
        (["--max_steps", "x"], "--max_steps is x: give a whole number"),
        (["--cudnn_benchmark", "maybe"], "--cudnn_benchmark is maybe: give true or false"),
        (["--ramp", "1"], "--ramp is 1: give a list of two numbers, such as [0.5, 1]"),
        (["--ramp", "[1, 2, 3]"], "--ramp is [1, 2, 3]: give a list of two numbers, such as [0.5, 1]"),
        (["--evaluation.epsilons", "[x]"], "--evaluation.epsilons is ['x']: give a list of numbers, such as [0.5, 1]"),
        (["--attack", "7"], "--attack is 7: give its options as a table, or each by its own name"),
        (["--views", "7"], "--views is 7: give its options as a table, or each by its own name"),
        (["--views.hue", "x"], "--views.hue is x: give a list of two numbers, such as [0.5, 1]"),
        (["--views", "{shift: x}"], "--views.shift is x: give a number or a fraction such as 8/255"),
        (["--views.flop", "1"], "unknown option views.flop"),
    ],
)
def test_a_wrong_value_is_answered_by_what_its_option_takes(words, sentence):
    with pytest.raises(UserError) as caught:
        parse(RobustifyConfig, [*BASE, *words])
    assert str(caught.value).startswith(sentence)


CONFIGURATIONS = (FinetuneConfig, RobustifyConfig, PretrainConfig, ProbeConfig, EvaluateConfig, PredictConfig, CompareConfig, ConvertConfig,
                  DemoConfig, PublishConfig, QuickstartConfig)  # fmt: skip


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_what_an_option_takes_can_be_said_of_every_option(configuration):
    kinds = _parser_of(configuration, ["--seed", "1"])[0].kinds()
    assert len(kinds) > 5
    for name, kind in kinds.items():
        words = wanted(kind)
        assert words
        assert not re.search("class|None|rocl_transfer|typing", words), (name, kind)


def test_missing_options_are_named():
    with pytest.raises(UserError, match="--data.name is missing"):
        parse(PretrainConfig, ["--output_dir", "x"])
    assert parse(QuickstartConfig, []).output_dir == "runs/quickstart"


def test_an_attack_does_nothing_for_a_clean_probe():
    with pytest.raises(UserError, match="--attack has no effect with --robust false"):
        parse(ProbeConfig, [*BASE, "--attack.epsilon", "8/255"])


def test_radii_of_the_evaluation_are_in_pixel_units():
    for words, sentence in ((["--evaluation.epsilons", "[8]"], "write 8/255 rather than 8"), (["--evaluation.norm", "l2"], "give radii with l2")):
        with pytest.raises(UserError, match=sentence):
            parse(ProbeConfig, [*BASE, *words])
    assert parse(ProbeConfig, [*BASE, "--evaluation.norm", "l2", "--evaluation.epsilons", "[2]"]).evaluation.epsilons == (2,)


def test_identity_leaves_out_what_may_change_on_a_resume():
    a = pretrain().identity(2)
    b = pretrain("--output_dir", "y", "--max_steps", "3", "--batch_size", "512", "--log_every", "3", "--objective.group_size", "256").identity(1)
    assert a == b
    assert pretrain("--seed", "1").identity(2) != a
    assert pretrain("--batch_size", "512").identity(1)["objective.group_size"] == 512  # its groups would be others


EVALUATED = ["--output_dir", "x", "--data.name", "digits", "--model.name", "m"]
RADII = {
    "pretrain": (PretrainConfig, BASE, "--objective.attack.norm", "--objective.attack.epsilon", "0.0314"),
    "finetune": (FinetuneConfig, BASE, "--attack.norm", "--attack.epsilon", "8/255"),
    "robustify": (RobustifyConfig, BASE, "--attack.norm", "--attack.epsilon", "4/255"),
    "evaluation": (ProbeConfig, BASE, "--evaluation.norm", "--evaluation.epsilons", "[8/255, 16/255]"),
    "evaluate": (EvaluateConfig, EVALUATED, "--norm", "--epsilon", "8/255"),
    "predict": (PredictConfig, ["a.png", "--model.name", "m"], "--norm", "--max_epsilon", "64/255"),
    "demo": (DemoConfig, ["--model.name", "m"], "--norm", "--max_epsilon", "64/255"),
}


@pytest.mark.parametrize("name", RADII)
def test_a_radius_that_is_given_is_taken_whatever_the_default_is(tmp_path, name):
    configuration, words, norm, option, radius = RADII[name]
    with pytest.raises(UserError, match="is meant for linf|are meant for linf"):
        parse(configuration, [*words, norm, "l2"])
    plain = parse(configuration, words)
    config = parse(configuration, [*words, norm, "l2", option, radius])
    value, default = config, plain
    for part in option.removeprefix("--").split("."):
        value, default = getattr(value, part), getattr(default, part)
    assert value == default  # so that it is what nobody gave, but for being given
    write_options(config, tmp_path / "config.yaml")
    assert parse(configuration, ["--config", str(tmp_path / "config.yaml")]) == config
    dataclasses.replace(config)  # as recipes fill in what was left to be chosen


PREDICT = ["--model.name", "runs/probe"]


def test_positional_words_are_read_and_written(tmp_path, capsys):
    config = parse(PredictConfig, ["a.png", "b", *PREDICT])
    assert config.images == ("a.png", "b")
    assert parse(PredictConfig, [*PREDICT, "--steps", "3", "a.png"]).images == ("a.png",)
    write_options(config, tmp_path / "config.yaml")
    assert parse(PredictConfig, ["--config", str(tmp_path / "config.yaml")]) == config
    assert parse(PredictConfig, ["--config", str(tmp_path / "config.yaml"), "c"]).images == ("c",)
    with pytest.raises(SystemExit):
        parse(PredictConfig, ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "images [images ...]" in shown
    assert "images Image files, and folders, in which images are looked for" in shown


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (PREDICT, "there are no images: name image files or folders"),
        (["a.png", *PREDICT, "b.png"], "b.png stands apart from the other images: name image files or folders side by side"),
        (["a.png"], "--model.name is missing"),
        (["a.png", *PREDICT, "--step", "3"], "unknown option --step; did you mean 'steps'?"),
        (["a.png", "", *PREDICT], "an image's name is empty"),
        (["a.png", *PREDICT, "--output", "p.json"], "name a file such as predictions.csv"),
        (["a.png", *PREDICT, "--robustness", "false", "--steps", "3"], "--steps has no effect with --robustness false"),
        (["a.png", *PREDICT, "--norm", "l2"], "give a radius with l2"),
        (["a.png", *PREDICT, "--max_epsilon", "64"], "write 64/255 rather than 64"),
        (["a.png", *PREDICT, "--max_epsilon", "0"], "give a radius above 0"),
        (["a.png", *PREDICT, "--steps", "0"], "must be 1 or more"),
        (["a.png", *PREDICT, "--seed", "-1"], "--seed is -1"),
        (["a.png", "--model.name", ""], "--model.name is empty"),
    ],
)
def test_mistakes_in_predicting(words, sentence):
    with pytest.raises(UserError) as caught:
        parse(PredictConfig, words)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_word_where_a_list_is_meant(tmp_path):
    (tmp_path / "c.yaml").write_text("images: photos\nmodel: {name: m}\n")
    with pytest.raises(UserError, match="images in the configuration is not a list"):
        parse(PredictConfig, ["--config", str(tmp_path / "c.yaml")])


@pytest.mark.parametrize(("name", "processes"), [("cpu", 1), ("one_gpu", 1), ("eight_gpus", 8), ("two_nodes", 16)])
def test_accelerates_own_configurations_are_read_by_it(name, processes):
    from accelerate.commands.config.config_args import load_config_from_file

    read = load_config_from_file(str(Path(__file__).parents[2] / "recipes" / "accelerate" / f"{name}.yaml"))
    assert (read.num_processes, read.mixed_precision) == (processes, "no")


def test_a_rate_belongs_to_its_optimiser():
    given = ["--optimizer.lr", "0.1"]
    assert probe("--optimizer.name", "sgd", *given).optimizer.lr == 0.1
    assert probe("--optimizer.name", "momentum").optimizer.lr == 0.1
    assert pretrain("--optimizer.name", "adamw", "--optimizer.lr", "1.5").optimizer.lr == 1.5
    for name in ("sgd", "lars"):
        with pytest.raises(UserError, match=f"--optimizer.lr is missing: a rate made for another optimiser is not for {name}"):
            probe("--optimizer.name", name)
