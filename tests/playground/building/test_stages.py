import torch
from safetensors.torch import load_file

from diffusers_erase.playground import model
from diffusers_erase.playground.building import networks, stages, tasks


def test_going_on_from_the_shipped_weights_begins_with_exactly_them(tmp_path, shipped):
    stages.start_from(model.WEIGHTS, tmp_path)
    networks.write_tokenizer(tmp_path / "tokenizer")
    network = tasks.DenoiserNetwork(tmp_path)
    weight = "conv_in.weight"
    assert not torch.equal(network.unet.state_dict()[weight], shipped.unet.state_dict()[weight])
    tasks.begin_from(network, tmp_path / "denoiser.start.safetensors")
    for part in ("unet", "text_encoder"):
        ours, theirs = getattr(network, part).state_dict(), getattr(shipped, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    kept = load_file(tmp_path / "vae.safetensors")
    assert all(torch.equal(value, kept[name]) for name, value in shipped.vae.state_dict().items())


def test_without_a_start_nothing_is_changed(tmp_path):
    network = torch.nn.Linear(2, 2)
    before = network.weight.clone()
    tasks.begin_from(network, tmp_path / "none.safetensors")
    assert torch.equal(network.weight, before)
