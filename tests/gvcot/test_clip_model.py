"""CLIP from local files: the shipped one and those of open_clip."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from gvcot.clip_model import SCENES_FOLDER, WEIGHTS_FILE, load_clip
from gvcot.data import scenes
from gvcot.data.images import to_tensor
from gvcot.errors import CheckpointError, ConfigError, DataError


@pytest.fixture(scope="module")
def clip():
    return load_clip()


def test_images_and_texts_are_unit_vectors_of_one_space(clip):
    samples = scenes.samples("val", range(3))
    images = clip.images(to_tensor([s.source_HW3 for s in samples]))
    texts = clip.texts([s.instruction for s in samples])
    assert images.shape == texts.shape
    assert torch.allclose(images.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(texts.norm(dim=1), torch.ones(3), atol=1e-5)


def test_a_text_has_one_embedding_wherever_it_stands(clip):
    words = ["a small red circle", "remove the star", "a small red circle"]
    together = clip.texts(words)
    assert torch.equal(together[0], together[2])
    for row, text in enumerate(words):
        assert torch.allclose(together[row], clip.texts([text])[0], atol=1e-6)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_images_of_another_size_are_stretched_whole(clip):
    """Twice as large is the same image; what lies at the edge of a wide one is seen."""
    image = to_tensor([scenes.generate(0, 1, split="val").source_HW3])
    double = image.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert (clip.images(image) * clip.images(double)).sum().item() > 0.98
    wide = torch.zeros(1, 3, 64, 192)
    marked = wide.clone()
    marked[..., 20:44, :24] = 1.0
    assert (clip.images(wide) * clip.images(marked)).sum().item() < 0.95


def test_long_texts_are_cut_and_unknown_words_named(clip):
    assert clip.texts(["small red circle " * 30]).isfinite().all()
    with pytest.raises(DataError, match="'zeppelin'"):
        clip.texts(["remove the zeppelin"])


def test_the_shipped_folder_is_one_that_open_clip_reads(clip):
    import open_clip

    other = open_clip.create_model(f"local-dir:{SCENES_FOLDER}").eval()
    image = to_tensor([scenes.generate(0, 1, split="val").source_HW3])
    with torch.no_grad():
        assert torch.equal(other.encode_image(image, normalize=True), clip.images(image))
    assert (SCENES_FOLDER / WEIGHTS_FILE).stat().st_size <= 1_000_000


def test_a_network_of_open_clip_with_local_weights(tmp_path):
    """Prepared as open_clip prepares its images and texts."""
    import open_clip
    from PIL import Image

    torch.manual_seed(0)
    network, _, preprocess = open_clip.create_model_and_transforms("ViT-S-32-alt")
    save_file(network.half().state_dict(), tmp_path / "weights.safetensors")
    clip = load_clip("ViT-S-32-alt", tmp_path / "weights.safetensors")
    pixels = scenes.generate(0, 1, split="val").source_HW3
    words = ["a photo of a dog", "blue"]
    with torch.no_grad():
        image = network.float().eval().encode_image(preprocess(Image.fromarray(pixels))[None], normalize=True)
        texts = network.encode_text(open_clip.get_tokenizer("ViT-S-32-alt")(words), normalize=True)
        assert (image * clip.images(to_tensor([pixels]))).sum().item() > 0.9999
        assert torch.allclose(texts, clip.texts(words), atol=1e-5)


def test_errors_say_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="give its weights, a local safetensors file"):
        load_clip("ViT-B-32")
    with pytest.raises(ConfigError, match="is no file of safetensors"):
        load_clip("ViT-B-32", tmp_path / "none.safetensors")
    some = tmp_path / "some.safetensors"
    save_file({"weight": torch.zeros(2)}, some)
    with pytest.raises(ConfigError, match="unknown CLIP 'ViT-B-23': did you mean 'ViT-B-32'"):
        load_clip("ViT-B-23", some)
    with pytest.raises(ConfigError, match="nothing is downloaded"):
        load_clip("ViT-B-16-SigLIP", some)
    with pytest.raises(CheckpointError, match="does not hold the weights of CLIP 'scenes'"):
        load_clip("scenes", some)
    some.write_bytes(b"not a file of tensors")
    with pytest.raises(CheckpointError, match="does not hold the weights of CLIP 'scenes'"):
        load_clip("scenes", some)


def test_open_clip_is_imported_only_when_a_model_is_loaded():
    code = (
        "import sys, rewards.clip, rewards.perceptual\n"
        "print(sorted({'open_clip', 'timm', 'torchvision'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
