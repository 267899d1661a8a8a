import torch
from torch.optim import SGD

from rocl_transfer.attacks import PGD
from rocl_transfer.data import Batch, Resident
from rocl_transfer.evaluation import compute_features
from rocl_transfer.models import add_head, create_backbone
from rocl_transfer.objectives import LinearProbe, RobustProbe


def classifier():
    torch.manual_seed(0)
    backbone = create_backbone("resnet8_cifar", 16).train()
    for _ in range(3):
        backbone(torch.rand(8, 3, 16, 16))
    return add_head(backbone, ["a", "b", "c"])


def batch(n=12):
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=generator), torch.arange(n) % 3, (1,))


def test_robust_probe_leaves_the_backbone_bit_for_bit():
    model = classifier()
    probe = RobustProbe(model, PGD(8 / 255, steps=3)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = SGD([p for p in probe.parameters() if p.requires_grad], 0.1)
    for _ in range(3):
        probe.train()
        probe(batch())["loss"].backward()
        optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"net.fc.weight", "net.fc.bias"}


def test_robust_probe_sees_the_attack_on_the_current_head():
    model = classifier()
    attack = PGD(16 / 255, steps=5)
    probe = RobustProbe(model, attack)
    sample = batch()
    clean = torch.nn.functional.cross_entropy(model.eval()(sample.inputs / 255), sample.labels)
    assert probe(sample)["loss"] > clean


def test_cached_features_train_the_head_that_passes_through_the_encoder_would():
    model = classifier().eval()
    sample = batch()
    features = compute_features(model, Resident(sample.inputs))
    torch.testing.assert_close(LinearProbe(model)(sample._replace(inputs=features))["loss"],
                               torch.nn.functional.cross_entropy(model(sample.inputs / 255), sample.labels))  # fmt: skip
