"""``[[protocol]]`` of the configuration: which series belong together, and how they are scored."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from dicom_node.config_types import Millimetres, Scale, Section, ShareOrCount


def _ascending(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError("a range is [smallest, largest]")
    return value


#: smallest and largest, both included
Range = Annotated[tuple[float, float], AfterValidator(_ascending)]


#: what a protocol may take from its own batch: its *space*
OWN_TEMPLATE, OWN_HISTOGRAM = "template", "histogram"


class Match(Section):
    """``[protocol.match]``: which series belong here; what is not given matches anything.

    `protocol.mismatches` says how each is compared.
    """

    modality: Literal["MR", "CT"]
    body_part: str | None = None
    #: regular expression, case-insensitive, found anywhere in Series Description
    series_description: str | None = None
    #: Scanning Sequence values that must all be there
    scanning_sequence: tuple[str, ...] = ()
    contrast_agent: bool | None = None
    orientation: Literal["axial", "coronal", "sagittal"] | None = None
    slice_spacing_mm: Range | None = None
    #: of an MR series
    echo_time_ms: Range | None = None
    repetition_time_ms: Range | None = None
    inversion_time_ms: Range | None = None
    field_strength_t: Range | None = None
    #: of one volume: s/mm2, a vendor's own element too; place in a dynamic series, from 1
    b_value: Range | None = None
    temporal_position: Range | None = None
    #: of a CT: tube voltage, and a regular expression found in Convolution Kernel
    kvp: Range | None = None
    kernel: str | None = None

    @field_validator("series_description", "kernel")
    @classmethod
    def _pattern_compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is no pattern: {error}") from error
        return pattern


class Protocol(Section):
    """``[[protocol]]``: a class of acquisitions that shares a reference batch."""

    #: part of batch versions and of results
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]
    #: "shadow" scores and records, and sends nothing: results are seen only where somebody chose so
    mode: Literal["live", "shadow"] = "shadow"
    #: its series are scored before others; until it is known, the sender alone says so
    urgent: bool = False
    match: Match
    #: least number of other patients that a study is compared with
    min_reference: Annotated[int, Field(ge=3)] = 15
    max_reference: Annotated[int, Field(ge=3)] = 60
    #: a study above this percentile of the protocol's recent scores (of the batch's own while there
    #: are few) is not admitted: 95 keeps out about one usual study of twenty, which costs less than
    #: an abnormal one that hides its like
    admission_percentile: Annotated[float, Field(ge=0, le=100)] = 95.0
    #: nor one whose quality is so many robust deviations from the members'; 0: any is
    quality_limit: Annotated[float, Field(ge=0)] = 5.0
    #: members of one scanner, at most: a share of max_reference, or a count; none: as they come
    max_per_scanner: ShareOrCount | None = None
    #: who leaves a full batch
    leaves: Literal["oldest", "most_redundant"] = "oldest"
    #: centred on the foreground; each a multiple of the coarsest token's edge
    extent_mm: tuple[Millimetres, Millimetres, Millimetres] = (168.0, 196.0, 168.0)
    spacing_mm: Annotated[float, Field(gt=0, le=5)] = 1.0
    intensity: Literal["percentiles", "hounsfield"] = "percentiles"
    window_hu: tuple[float, float] = (-600.0, 1500.0)
    #: written into results whose source has no Body Part Examined
    body_part: Annotated[str, Field(pattern=r"^[A-Z0-9 _]{1,16}$")] | None = None
    #: centre and spread of the histogram are made alike by "percentiles"; with this its whole shape
    #: too, as the batch's own mean has it
    harmonise: bool = False
    #: registration to `template` before anything else: 6 or 12 degrees of freedom
    alignment: Literal["none", "rigid", "affine", "atlas"] = "none"
    #: a NIfTI file, or the most typical subject of the batch itself
    template: Literal["medoid"] | Path | None = None
    #: the batch's own template and histogram are chosen again when it has grown by this factor
    #: since they were; 0: only when a person asks for it
    rechoose_growth: Annotated[float, Field(ge=0)] = 2.0
    #: what is scored; "brain" of T1-weighted heads, "template" is the template's own foreground
    foreground: Literal["body", "brain", "lung", "template"] = "body"
    #: against what is usual at the place (subjects in one space) or for the most alike tokens
    #: (subjects in none: chests); "none": the raw distance
    calibration: Literal["position", "analogue", "none"] = "position"
    #: sizes of tokens, where they are others than those of [encoder]
    scales: tuple[Scale, ...] | None = None
    #: reference subjects this many robust deviations above the batch's median do not judge; 0: all
    outlier_limit: Annotated[float, Field(ge=0)] = 0.0
    #: no analogue from a subject that shares what is unusual; a score costs O(n^2) with it
    guard_shared: bool = False
    #: fine tokens are compared within so many of the most alike coarse cells (0: with all), and
    #: within so many cells round their own place (-1: none); by default as `calibration` allows
    coarse_cells: Annotated[int, Field(ge=0)] | None = None
    window_cells: Annotated[int, Field(ge=-1, le=10)] | None = None
    #: calibrated units, or those of the raw distance where calibration is "none"
    finding_threshold: float = 3.0
    #: the batch raises the threshold, twofold at most, until its own subjects have at most so many
    #: findings each on average (without the quarter with the most); 0: it is fixed
    findings_per_normal: Annotated[float, Field(ge=0, le=10)] = 0.0
    finding_min_volume_ml: Annotated[float, Field(ge=0)] = 0.2
    max_findings: Annotated[int, Field(ge=1, le=50)] = 10

    @property
    def own(self) -> tuple[str, ...]:
        """What it takes from its own batch, of `OWN_TEMPLATE` and `OWN_HISTOGRAM`."""
        found = ((OWN_TEMPLATE, self.template == "medoid"), (OWN_HISTOGRAM, self.harmonise))
        return tuple(part for part, taken in found if taken)

    @model_validator(mode="after")
    def _bounds_agree(self) -> Protocol:
        if self.max_reference < self.min_reference:
            raise ValueError("max_reference must not be below min_reference")
        if self.window_hu[1] <= 0:
            raise ValueError("window_hu is [centre, width], and the width is above 0")
        if 0 < self.rechoose_growth < 1.2:
            raise ValueError("rechoose_growth is 1.2 or more (a rebuild encodes all anew), or 0")
        if self.scales == ():
            raise ValueError("scales lists at least one size of token")
        return self

    @model_validator(mode="after")
    def _space_agrees(self) -> Protocol:
        if (self.alignment == "none") != (self.template is None):
            raise ValueError(
                "alignment and template go together: a NIfTI file to be aligned with, or "
                '"medoid", the most typical subject of the batch'
            )
        if self.foreground == "template" and self.template is None:
            raise ValueError('foreground = "template" needs alignment and a template')
        if (self.foreground == "lung") > (self.intensity == "hounsfield"):
            raise ValueError('foreground = "lung" is of CT: intensity = "hounsfield"')
        if (self.foreground == "brain") > (self.intensity == "percentiles"):
            raise ValueError('foreground = "brain" is of MR: intensity = "percentiles"')
        if self.harmonise > (self.intensity == "percentiles"):
            raise ValueError(
                'harmonise is of MR, intensity = "percentiles": Hounsfield units are alike already'
            )
        return self

    @model_validator(mode="after")
    def _search_agrees(self) -> Protocol:
        if self.calibration == "analogue" and (self.guard_shared or self.coarse_cells):
            raise ValueError(
                'calibration = "analogue" allows neither guard_shared nor coarse_cells'
            )
        if self.calibration != "position" and self.window_cells not in {None, -1}:
            raise ValueError('window_cells needs subjects in one space: calibration = "position"')
        return self
