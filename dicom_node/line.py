"""What the stages share in one worker, and the names under which their products are kept."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch

from dicom_node import __version__, weights
from dicom_node.anomaly.encoder import Encoder, build_encoder
from dicom_node.anomaly.spec import EncoderSpec, GridSpec, ScoringSpec, TokenSpec
from dicom_node.config import NodeConfig, Protocol, digest
from dicom_node.folders import Folders
from dicom_node.reference import ReferenceBatch, ReferenceFiles
from dicom_node.series import Series
from dicom_node.store import series_table
from dicom_node.store.database import Database

_AXES = {"axial": 0, "coronal": 1, "sagittal": 2}


class Line:
    """What the stages share in one worker: configuration, ledger, files, the encoder."""

    def __init__(self, config: NodeConfig, database: Database, cache: Path) -> None:
        self.config = config
        self.database = database
        self.folders = Folders(config.node.data_dir)
        self._weights = weights.locate(config.encoder, cache)

    @cached_property
    def encoder_spec(self) -> EncoderSpec:
        """The encoder as the weights' card and the configuration say."""
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
        """The encoder on its device."""
        torch.set_num_threads(self.config.scoring.threads or torch.get_num_threads())
        return build_encoder(self.encoder_spec, self._weights.state(), self.config.encoder.device)

    @cached_property
    def token_spec(self) -> TokenSpec:
        """How tokens are made."""
        encoder = self.config.encoder
        return TokenSpec(
            axes=tuple(_AXES[axis] for axis in encoder.axes),
            upsampling=encoder.upsampling,
            slices_per_token=encoder.slices_per_token,
            projection_dim=encoder.projection_dim,
            seed=encoder.seed,
        )

    def grid_spec(self, of: Protocol) -> GridSpec:
        """Return the canonical grid of a protocol."""
        return GridSpec(of.extent_mm, of.spacing_mm)

    def scoring_spec(self, of: Protocol) -> ScoringSpec:
        """How a protocol's tokens are scored."""
        scoring = self.config.scoring
        return ScoringSpec(
            nearest_share=scoring.nearest_share,
            calibration=of.calibration,
            smoothing_mm=scoring.smoothing_mm,
        )

    def token_fingerprint(self, of: Protocol) -> str:
        """Return the hash of everything that shapes a token: it keys the reference batch."""
        return digest(
            asdict(self.encoder_spec),
            self._weights.card.sha256,
            asdict(self.token_spec),
            asdict(self.grid_spec(of)),
            [of.intensity, of.window_hu],
            __version__,
        )

    def fingerprint(self, of: Protocol) -> str:
        """Return the hash of everything that shapes a token, a score or a finding."""
        shape = [of.finding_threshold, of.finding_min_volume_ml, of.max_findings]
        return digest(self.token_fingerprint(of), asdict(self.scoring_spec(of)), shape)

    def files(self, of: Protocol) -> ReferenceFiles:
        """Return the reference files of a protocol's token space."""
        return ReferenceFiles(self.folders.root, self.token_fingerprint(of))

    def batch(self, of: Protocol) -> ReferenceBatch:
        """Return the reference batch of a protocol."""
        return ReferenceBatch(self.database, of, self.token_fingerprint(of))

    def series(self, uid: str) -> tuple[Series, str]:
        """Return a series and the name of its content as a subject."""
        with self.database.read() as db:
            found = series_table.load(db, uid, self.folders.inbox)
            content = series_table.instances_digest_source(db, uid)
        return found, digest(uid, content)
