"""What the stages share in one worker, and the names under which their products are kept.

A *fingerprint* is the digest of everything that shapes a product: two products of one fingerprint
may be compared, and a changed setting can never meet the files of the old one. The configuration's
models become the frozen specs of :mod:`dicom_node.anomaly` here and nowhere else.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch

from dicom_node import weights
from dicom_node.anomaly.encoder import Encoder, build_encoder
from dicom_node.anomaly.spec import TOKEN_VERSION, EncoderSpec, GridSpec, ScoringSpec, TokenSpec
from dicom_node.anomaly.tokens import check_grid
from dicom_node.config import NodeConfig, Protocol, digest
from dicom_node.errors import ConfigError
from dicom_node.folders import Folders
from dicom_node.reference import ReferenceBatch, ReferenceFiles
from dicom_node.series import Series
from dicom_node.store import series_table
from dicom_node.store.database import Database

_AXES = {"axial": 0, "coronal": 1, "sagittal": 2}


class Line:
    """What the stages share in one worker: configuration, ledger, files, the encoder.

    Raises
    ------
    WeightsMissing, WeightsMismatch, ConfigError
        What ``[encoder]`` names is not there, or is something else: said when the worker starts,
        not when its first study comes.
    """

    def __init__(self, config: NodeConfig, database: Database, cache: Path) -> None:
        self.config = config
        self.database = database
        self.folders = Folders(config.node.data_dir)
        self._weights = weights.locate(config.encoder, cache)
        for protocol in config.protocol:
            self._check_extent(protocol)

    def _check_extent(self, protocol: Protocol) -> None:
        """Refuse a grid into which the tokens do not fit, before the first series fails of it."""
        grid = self.grid_spec(protocol)
        try:
            pitch = self.token_spec.pitch_voxels(self.encoder_spec.patch_size)
            check_grid(grid.shape, pitch)
        except ValueError as error:
            edge = self.encoder_spec.patch_size / self.token_spec.upsampling * grid.spacing_mm
            fitting = [max(1, round(side / edge)) * edge for side in grid.extent_mm]
            raise ConfigError(
                f"[[protocol]] {protocol.name}: {error}; a token's edge is {edge:g} mm, so "
                f"extent_mm could be {fitting} (or change spacing_mm or encoder.upsampling)"
            ) from error

    @cached_property
    def encoder_spec(self) -> EncoderSpec:
        """The encoder as the weights' card says; ``encoder.layers``, where given, goes first."""
        card = self._weights.card
        return EncoderSpec(
            timm_name=self.config.encoder.model,
            layers=self.config.encoder.layers or card.layers,
            patch_size=card.patch_size,
            mean=card.mean,
            std=card.std,
        )

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder on its device, loaded at the first use and kept.

        Raises ConfigError where the weights do not fit the model, or there is no such device.
        """
        settings = self.config.encoder
        # for the whole process: the matching shares these threads
        torch.set_num_threads(self.config.scoring.threads or torch.get_num_threads())
        try:
            return build_encoder(self.encoder_spec, self._weights.state(), settings.device)
        except (RuntimeError, AssertionError) as error:  # the latter of a torch without CUDA
            why = " ".join(str(error).split())[:300]  # torch lists every tensor, one a line
            raise ConfigError(
                f"encoder.model {settings.model} cannot be loaded with the weights "
                f"{self._weights.card.name} on encoder.device {settings.device}: {why}"
            ) from error

    @cached_property
    def token_spec(self) -> TokenSpec:
        """How tokens are made, for every protocol alike."""
        encoder = self.config.encoder
        return TokenSpec(
            axes=tuple(_AXES[axis] for axis in encoder.axes),
            upsampling=encoder.upsampling,
            slices_per_token=encoder.slices_per_token,
            projection_dim=encoder.projection_dim,
            seed=encoder.seed,
        )

    def grid_spec(self, of: Protocol) -> GridSpec:
        """Return the canonical grid of a protocol, in millimetres and voxels."""
        return GridSpec(of.extent_mm, of.spacing_mm)

    def scoring_spec(self, of: Protocol) -> ScoringSpec:
        """Return how a protocol's tokens are scored."""
        scoring = self.config.scoring
        return ScoringSpec(
            nearest_share=scoring.nearest_share,
            calibration=of.calibration,
            smoothing_mm=scoring.smoothing_mm,
        )

    def token_fingerprint(self, of: Protocol) -> str:
        """Return the hash of everything that shapes a token: it keys the reference batch.

        Tokens of two fingerprints are never compared. A new version of the node keeps it, and with
        it the batches, unless its code makes other tokens.
        """
        return digest(
            asdict(self.encoder_spec),
            self._weights.card.sha256,
            asdict(self.token_spec),
            asdict(self.grid_spec(of)),
            [of.intensity, of.window_hu],
            TOKEN_VERSION,
        )

    def fingerprint(self, of: Protocol) -> str:
        """Return the hash of everything that shapes a token, a score or a finding.

        It names a score's products and goes into the results, and through their UIDs makes a result
        of other settings another instance.
        """
        shape = [of.finding_threshold, of.finding_min_volume_ml, of.max_findings]
        return digest(self.token_fingerprint(of), asdict(self.scoring_spec(of)), shape)

    def files(self, of: Protocol) -> ReferenceFiles:
        """Return the files of a protocol's token space: tokens and distances."""
        return ReferenceFiles(self.folders.root, self.token_fingerprint(of))

    def batch(self, of: Protocol) -> ReferenceBatch:
        """Return the batch of a protocol's token space: who is in it."""
        return ReferenceBatch(self.database, of, self.token_fingerprint(of))

    def series(self, uid: str) -> tuple[Series, str]:
        """Return a series as it is now and the name of its content as a subject.

        Both of one moment: an instance that comes later makes another subject. Raises LookupError
        for a series that the ledger does not know.
        """
        with self.database.read() as db:
            found = series_table.load(db, uid, self.folders.inbox)
            content = series_table.instances_digest_source(db, uid)
        return found, digest(uid, content)
