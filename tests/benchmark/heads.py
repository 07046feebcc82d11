"""What is measured on: built-in heads under the `mr` preset, and more subjects derived from them.

A derived subject is a head whose tokens are moved a little: it costs no encoding, and takes as long
to compare as a real one.
"""

from dataclasses import replace

import torch

from dicom_node.anomaly import resample
from dicom_node.anomaly.encoder import build_encoder
from dicom_node.anomaly.presets import preset
from dicom_node.anomaly.spec import TOKEN_VERSION, EncoderSpec, GridSpec
from dicom_node.anomaly.tokens import Tokens
from dicom_node.config import Encoder as EncoderSettings
from dicom_node.config import digest
from dicom_node.demo.cohort import load_template, make_head
from dicom_node.folders import cache_folder
from dicom_node.reference_files import ReferenceFiles
from dicom_node.subject import Subject, make_subject
from dicom_node.weights import locate
from tests.benchmark.measure import THREADS

#: encoded ones; the others are derived from them
N_HEADS = 6
DEPTH = 12


def load_encoder():
    """The packaged encoder as the node builds it."""
    torch.set_num_threads(THREADS)
    settings = EncoderSettings()
    weights = locate(settings, cache_folder())
    card = weights.card
    spec = EncoderSpec(settings.model, card.patch_size, card.mean, card.std)
    return build_encoder(spec, weights.state(), "cpu")


def method(setting):
    """The `mr` preset; of a small run on a piece of the head."""
    layers = locate(EncoderSettings(), cache_folder()).card.layers
    found = preset("mr", layers, DEPTH)
    return replace(found, grid=GridSpec((56.0, 56.0, 56.0), 1.0)) if setting.small else found


def volume(seed):
    """Voxels of 1 mm and their affine: a built-in head, between its slices of 2 mm."""
    head = make_head(load_template(cache_folder()), seed, with_lesions=bool(seed % 2))
    source = torch.from_numpy(head.affine)
    target = source.clone()
    target[:3, 0] /= 2
    shape = (2 * head.voxels.shape[0], *head.voxels.shape[1:])
    to_source = resample.index_map(target, source)
    return resample.sample(torch.from_numpy(head.voxels), to_source, shape, 0.0), target


def files_of(setting, name, search=None):
    """The kept subjects called `name`; those of another kind of token are not among them."""
    how = method(setting)
    kind = digest(TOKEN_VERSION, repr(how.grid), repr(how.tokens))
    return ReferenceFiles(setting.folder / name, kind, search or how.search)


def encoded(setting):
    """Files and names of real heads; those of an earlier run in the folder are not made again."""
    files, names = files_of(setting, "heads"), [f"head-{n}" for n in range(N_HEADS)]
    missing = [n for n, name in enumerate(names) if not files.has_subject(name)]
    if missing:
        encoder, how = load_encoder(), method(setting)
        for n in missing:
            files.save_subject(names[n], make_subject(*volume(n), how, encoder))
    return files, names


def cohort(setting, name, total):
    """Names of `total` subjects in the files called `name`: the heads, moved at random."""
    heads, of = encoded(setting)
    files, names = files_of(setting, name), [f"subject-{n:03}" for n in range(total)]
    loaded = [heads.load_subject(head) for head in of]
    for n, subject in enumerate(names):
        if not files.has_subject(subject):
            files.save_subject(subject, derived(loaded[n % len(loaded)], n))
    return names


def derived(head, seed):
    """The same head with noise a fifth as large as its tokens' spread."""
    generator = torch.Generator().manual_seed(seed)
    scales = []
    for tokens in head.tokens:
        noise = torch.randn(tokens.values.shape, generator=generator)
        moved = tokens.values + 0.2 * tokens.values.std(1, keepdim=True) * noise
        scales.append(Tokens(moved, tokens.index, tokens.grid_shape))
    return Subject(tuple(scales), head.foreground, head.affine)
