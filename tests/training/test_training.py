import json
import math
from pathlib import Path

import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from timm.layers.norm_act import SyncBatchNormAct
from torch import nn

from rocl_transfer import UserError
from rocl_transfer.data import Batches, Resident, Sampler
from rocl_transfer.objectives import Objective
from rocl_transfer.training import Cadence, Checkpoints, OptimizerOptions, Run, RunOptions, train
from rocl_transfer.training.metrics import peak_memory
from rocl_transfer.training.runtime import synchronised
from tests.conftest import settings


class Toy(Objective):
    exported = None  # nothing leaves

    """Regression with dropout and BatchNorm: state in weights, buffers, optimiser and random draws."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 1))
        self.killed_at = self.explodes_from = None
        self.calls = 0

    def forward(self, batch):
        self.calls += 1
        noise = torch.rand(len(batch.inputs), 4, generator=torch.Generator().manual_seed(batch.seeds[0]))
        loss = (self.net(batch.inputs + noise).squeeze(1) - batch.labels).square().mean()
        if self.killed_at == self.calls:
            raise KeyboardInterrupt  # as SIGKILL, it leaves no time to save
        if self.explodes_from is not None and self.calls >= self.explodes_from:
            loss = loss * float("nan")
        return {"loss": loss, "extra": loss.detach() * 2}


def run(folder, objective=None, opt="lars", **options):
    objective = objective or Toy()
    learning = OptimizerOptions(name=opt, lr=0.1, weight_decay=1e-4, warmup_epochs=1, warmup_lr=0.01)
    inputs = torch.rand(22, 4, generator=torch.Generator().manual_seed(1))
    batches = Batches(Resident(inputs), inputs.sum(1), Sampler(22, 4, seed=3))
    checkpoints = Checkpoints(folder, 2, options.pop("identity", {"lr": 0.1}))
    watcher, seen = options.pop("watcher", lambda: None), []
    cadence = Cadence(log=options.pop("log", 4), checkpoint=options.pop("checkpoint_every", None), monitor=2)
    epochs = options.pop("epochs", 4)

    def monitor():
        seen.append(watcher())
        return {"seen": 1.0}

    accelerator = Accelerator(cpu=True)
    told = settings(monitor=monitor, cadence=cadence, **options)
    trained = train(accelerator, objective, learning.create(objective), learning.over(epochs), batches, checkpoints, **told)
    return objective, trained


def lines(folder):
    read = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_second", "memory_bytes")} for line in read]


def test_lars_is_the_official_rule():
    parameter = nn.Parameter(torch.linspace(-1, 1, 12))
    module = nn.Module()
    module.p = parameter
    optimizer = OptimizerOptions(name="lars", lr=0.24, weight_decay=1e-6).create(module)
    parameter.grad = torch.linspace(0.5, -0.25, 12)
    before = parameter.detach().clone()
    optimizer.step()
    assert parameter[0].item() == pytest.approx(-1.000282645, abs=1e-7)
    step = (before - parameter.detach())[0] / 0.24 / (0.5 + 1e-6 * -1)
    assert step.item() == pytest.approx(0.002355131, rel=1e-3)


@pytest.mark.parametrize("weight_decay", [1e-6, 0.0])
def test_lars_adapts_every_parameter_and_takes_zeros_as_they_are(weight_decay):
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))  # a bias and a norm, which timm would leave out
    optimizer = OptimizerOptions(name="lars", lr=1.0, weight_decay=weight_decay, momentum=0.0).create(module)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [weight_decay]
    nn.init.ones_(module[0].bias)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert module[0].bias.tolist() == pytest.approx([0.999] * 3, abs=1e-5)  # ratio 0.001 * |p| / |g|
    assert module[1].bias.tolist() == pytest.approx([-1.0] * 3)  # |p| = 0: ratio 1


def test_the_cosine_schedule_with_warm_up_is_the_papers():
    schedule = OptimizerOptions(lr=1.5, warmup_epochs=10, warmup_lr=0.1).over(1000)
    table = {0: 0.24, 1: 0.38, 8: 1.36, 9: 1.5, 10: 1.5, 50: 1.4941, 100: 1.4702, 500: 0.7736, 999: 0.000448}
    for epoch, rate in table.items():
        assert schedule(epoch) == pytest.approx(rate, rel=2e-3, abs=1e-6)
    for epoch in range(10):
        assert schedule(epoch) == pytest.approx(0.1 * (1 + 1.4 * (epoch + 1)))
    for epoch in range(10, 1000):
        assert schedule(epoch) == pytest.approx(0.75 * (1 + math.cos(math.pi * (epoch - 10) / 1000)))


@pytest.mark.parametrize(("name", "lr"), [("lars", 1.5), ("lars", 0.05), ("adamw", 2e-3), ("momentum", 0.01)])
def test_a_warm_up_never_falls_by_default(name, lr, tmp_path):
    from pretrain import PretrainConfig
    from rocl_transfer.config import parse
    from rocl_transfer.options import write_options

    words = ["--data.name", "digits", "--model.name", "resnet8_cifar", "--output_dir", "runs/pre", "--optimizer.warmup_epochs", "3"]
    chosen = ["--optimizer.name", name, "--optimizer.lr", str(lr)]
    write_options(parse(PretrainConfig, words), tmp_path / "config.yaml")
    for config in (parse(PretrainConfig, [*words, *chosen]), parse(PretrainConfig, ["--config", str(tmp_path / "config.yaml"), *chosen])):
        rates = [config.optimizer.over(10)(epoch) for epoch in range(4)]
        assert rates == sorted(rates)
        assert rates[2] == pytest.approx(lr)
        assert rates[0] == pytest.approx(0.1 + 1.4 / 3 if lr == 1.5 else lr if name == "lars" else lr / 3)
        assert config.identity(1)["optimizer.warmup_lr"] == {"lars": min(0.1, lr)}.get(name, 0)


def test_the_step_schedule_is_the_papers():
    schedule = OptimizerOptions(lr=0.1, schedule="steps", warmup_epochs=0, milestones=(1 / 5, 1 / 3, 2 / 3)).over(150)
    assert [schedule(epoch) for epoch in (0, 29, 30, 49, 50, 99, 100, 149)] == pytest.approx([0.1, 0.1, 1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])


@pytest.mark.parametrize("opt", ["lars", "adamw", "momentum", "lamb"])  # lamb counts its steps outside the per-parameter state
@pytest.mark.parametrize("stop", [1, 5, 6, 13])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, opt, stop):
    whole, trained = run(tmp_path / "whole", opt=opt, checkpoint_every=1)
    run(tmp_path / "parts", opt=opt, checkpoint_every=1, max_steps=stop)
    torch.rand(17)  # another process's global generator stands elsewhere
    resumed, again = run(tmp_path / "parts", opt=opt, checkpoint_every=1)
    assert trained.steps == again.steps == 24  # 5 full batches and a partial one, 4 epochs
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_a_killed_run_leaves_no_gap_and_no_double_in_the_metrics(tmp_path):
    run(tmp_path / "whole", checkpoint_every=3)
    dies = Toy()
    dies.killed_at = 12  # steps 10 and 11 are done, the last checkpoint is at 9; step 11 is past a logged one
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", dies, checkpoint_every=3, log=1)
    run(tmp_path / "killed", checkpoint_every=3, log=1)
    run(tmp_path / "logged", checkpoint_every=3, log=1)
    assert lines(tmp_path / "killed") == lines(tmp_path / "logged")


def test_running_means_go_through_a_checkpoint(tmp_path):
    run(tmp_path / "whole", log=7)
    dies = Toy()
    dies.killed_at = 10
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", dies, checkpoint_every=5, log=7)
    run(tmp_path / "killed", checkpoint_every=5, log=7)
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")


def test_a_non_finite_loss_stops_with_a_diagnosis_and_is_not_taken(tmp_path):
    objective = Toy()
    objective.explodes_from = 8
    with pytest.raises(UserError) as caught:
        run(tmp_path, objective, checkpoint_every=3)
    for words in ("step 5", "loss = nan", "weights were still finite", "went back 2 times", "No checkpoint was any good", "--optimizer.lr"):
        assert words in str(caught.value)
    assert all(torch.isfinite(p).all() for p in objective.parameters())


def test_a_checkpoint_never_holds_a_non_finite_weight(tmp_path):
    objective = Toy()
    with torch.no_grad():
        objective.net[1].running_mean[0] = float("nan")  # in train mode no loss would show it
    with pytest.raises(UserError, match="running_mean is not finite"):
        run(tmp_path, objective)
    assert Checkpoints(tmp_path, 2, {}).latest() is None


def test_checkpoints_are_complete_or_absent_rotated_and_without_pickle(tmp_path, monkeypatch):
    run(tmp_path, checkpoint_every=2, max_steps=9)
    folder = tmp_path / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["step-8", "step-9"]
    for path in (folder / "step-9").iterdir():
        assert path.suffix in (".safetensors", ".json")
    assert set(load_file(folder / "step-9" / "objective.safetensors")) == set(Toy().state_dict())

    def killed(path, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, checkpoint_every=2, max_steps=12)
    monkeypatch.undo()
    assert Checkpoints(tmp_path, 2, {}).latest().name == "step-9"
    run(tmp_path, checkpoint_every=2, max_steps=12)
    assert sorted(p.name for p in folder.iterdir()) == ["step-10", "step-12"]


def test_resume_says_what_it_refuses(tmp_path):
    run(tmp_path / "a", max_steps=4)
    with pytest.raises(UserError, match="--lr was 0.1 .* and is 0.2 now"):
        run(tmp_path / "a", identity={"lr": 0.2})
    with pytest.raises(UserError, match="already holds a run"):
        run(tmp_path / "a", resume="none")
    for name, sentence in (("nowhere", "neither a checkpoint nor a run folder"), ("x" * 300, "is not a path .File name too long")):
        with pytest.raises(UserError, match=sentence):
            run(tmp_path / "b", resume=str(tmp_path / name))


def test_resume_from_a_path(tmp_path):
    whole, _ = run(tmp_path / "whole")
    run(tmp_path / "a", max_steps=6)
    for source in (tmp_path / "a", tmp_path / "a" / "checkpoints" / "step-6"):
        resumed, _ = run(tmp_path / f"from_{source.name}", resume=str(source))
        assert torch.equal(resumed.net[0].weight, whole.net[0].weight)


def test_resuming_from_an_older_checkpoint_forgets_the_newer(tmp_path):
    run(tmp_path, checkpoint_every=4, max_steps=12)
    run(tmp_path, checkpoint_every=2, max_steps=10, resume=str(tmp_path / "checkpoints" / "step-8"))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-10", "step-8"]
    assert max(line["step"] for line in lines(tmp_path)) == 10


def test_max_steps_truncates_the_schedule(tmp_path):
    run(tmp_path / "whole", log=1)
    run(tmp_path / "short", log=1, max_steps=8)
    rates = [[line["lr"] for line in lines(tmp_path / name) if "lr" in line] for name in ("whole", "short")]
    assert rates[1] == rates[0][:8]


@pytest.mark.parametrize("opt", ["lars", "adamw"])
def test_a_resumed_optimiser_has_its_tensors_laid_out_as_the_weights_are(tmp_path, opt):
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 1)).to(memory_format=torch.channels_last)
    first, again = (OptimizerOptions(name=opt, lr=0.1, weight_decay=1e-4).create(module) for _ in range(2))
    module(torch.rand(4, 3, 3, 3)).sum().backward()
    first.step()
    checkpoints = Checkpoints(tmp_path, 1, {})
    checkpoints.save(1, module, first, {})
    checkpoints.load(checkpoints.latest(), module, again)
    for parameter, slots in again.state.items():
        for name, value in slots.items():
            assert torch.equal(value, first.state[parameter][name])
            assert value.dim() == 0 or value.stride() == parameter.stride(), name


def test_batchnorm_is_made_one_over_processes_once_and_keeps_its_activation():
    objective = Toy()
    objective.net = timm.create_model("test_efficientnet", num_classes=0)  # its norms hold their activations
    twice = synchronised(synchronised(objective))
    norms = [part for part in twice.modules() if isinstance(part, nn.SyncBatchNorm)]
    assert norms
    assert all(isinstance(part, SyncBatchNormAct) for part in norms)


def test_the_rate_per_step_is_fares():
    """FARE's command: 1,400 of 20,000 steps of warm-up, then half a cosine to 0 (open_clip's schedule, which sets the rate after an update)."""
    schedule = OptimizerOptions(lr=1e-5, schedule="cosine_per_step", warmup_epochs=0.14, warmup_lr=0).over(2)
    rates = {update: schedule(*divmod(update, 10_000), 10_000) * 1e5 for update in (1, 1399, 10_700, 19_999)}
    assert rates[1] == pytest.approx(0.0014286, abs=1e-7)
    assert rates[1399] == pytest.approx(1.0)
    assert rates[10_700] == pytest.approx(0.5)
    assert rates[19_999] == pytest.approx(7e-9, abs=1e-9)


def test_memory_is_that_of_the_device_that_trains_not_of_one_that_stands_by(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: 0 if device is None or device.type == "cpu" else 12345)
    run(tmp_path, log=1, epochs=1)
    logged = [json.loads(line).get("memory_bytes") for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert min(value for value in logged if value is not None) > 2**20
    assert peak_memory(torch.device("cuda", 0)) == 12345


@pytest.mark.parametrize("asked", [None, True, False])
def test_cudnn_times_its_kernels_in_steps_alone(tmp_path, asked):
    seen = []

    class Watched(Toy):
        def forward(self, batch):
            seen.append(("step", torch.backends.cudnn.benchmark))
            return super().forward(batch)

    before = torch.backends.cudnn.benchmark
    run(tmp_path, Watched(), epochs=2, cudnn_benchmark=asked, watcher=lambda: seen.append(("look", torch.backends.cudnn.benchmark)))
    assert {value for what, value in seen if what == "step"} == {bool(asked)}
    assert [value for what, value in seen if what == "look"] == [False]
    assert torch.backends.cudnn.benchmark is before


@pytest.mark.parametrize("asked", [True, False])
def test_an_option_of_cudnn_is_refused_where_there_is_none(tmp_path, asked):
    with pytest.raises(UserError, match=r"^--cudnn_benchmark has no effect on this device \(cpu\), which has no cuDNN: leave it out$"):
        Run(RunOptions(output_dir=str(tmp_path), epochs=1, batch_size=4, cudnn_benchmark=asked))
