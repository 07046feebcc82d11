"""A whole method with its encoder, for scans that come from no PACS: a preset, or a protocol's.

What makes a protocol's scores here is what makes them in the node, under the same fingerprints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dicom_node import protocol
from dicom_node.anomaly.encoder import Encoder
from dicom_node.anomaly.presets import preset
from dicom_node.anomaly.spec import MethodSpec
from dicom_node.anomaly.tokens import check_grid
from dicom_node.config import NodeConfig, digest
from dicom_node.errors import ConfigError, NoMatchingProtocol
from dicom_node.grouping import of_node
from dicom_node.line import Methods
from dicom_node.placement import Foreground, Placing
from dicom_node.protocol_config import Match, Protocol
from dicom_node.space import Space
from dicom_node.volume import Volume

#: what a preset scores, if not the body
_FOREGROUND: dict[str, Foreground] = {"ct": "lung"}


@dataclass(frozen=True, slots=True)
class Findings:
    """Which regions of a map are findings."""

    #: in the units of the calibrated map; None where the method does not calibrate, and the scores
    #: of the other subjects must say what is high
    threshold: float | None = 3.0
    min_volume_ml: float = 0.2
    max_findings: int = 10
    #: the others raise the threshold until each of them has at most so many findings on average; 0,
    #: as of a preset: it is fixed. A folder may hold abnormal scans alone
    per_normal: float = 0.0


@dataclass(frozen=True, slots=True)
class Own:
    """What a recipe takes from its own batch."""

    #: of `protocol_config.OWN_TEMPLATE` and `OWN_HISTOGRAM`
    parts: tuple[str, ...]
    #: returns the complete recipe
    taken: Callable[[Space], Recipe]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How scans are scored."""

    #: of the preset or the protocol
    name: str
    method: MethodSpec
    findings: Findings
    #: names the encoder in results
    encoder_name: str
    encoder: Encoder
    #: of all that shapes a token; of all that shapes a token, a score or a finding
    token_fingerprint: str
    fingerprint: str
    placing: Placing
    #: what a series must be like; None takes any
    match: Match | None = None
    #: what it takes from the scans themselves, and is not complete without; None: nothing
    own: Own | None = None

    def check_match(self, source: Volume) -> None:
        """Raise NoMatchingProtocol for a series that the protocol does not claim.

        NIfTI has no attributes to ask.
        """
        if self.match is not None and source.headers:
            faults = protocol.mismatches(self.match, source.headers[0], source.spacing_mm[0])
            if faults:
                raise NoMatchingProtocol(f"not of protocol {self.name}: {'; '.join(faults)}")


def of_protocol(config: NodeConfig, name: str, cache: Path) -> Recipe:
    """Return the recipe of a protocol of a node: of its configuration, or one it discovered.

    Where it takes its template or histogram from its own batch, `own_space.learnt` completes it.

    Raises
    ------
    ConfigError
        There is no such protocol, its grid does not fit the tokens, or the encoder cannot be
        loaded.
    WeightsMissing, WeightsMismatch
        What ``[encoder]`` names is not there, or is something else.
    """
    methods = Methods(config, cache)
    chosen = of_node(config).named(name)
    made = _of_methods(methods, chosen)
    if not chosen.own:
        return made

    def taken(space: Space) -> Recipe:
        methods.enter(chosen, space)
        return _of_methods(methods, chosen)

    return replace(made, own=Own(chosen.own, taken))


def _of_methods(methods: Methods, chosen: Protocol) -> Recipe:
    return Recipe(
        name=chosen.name,
        method=methods.method(chosen),
        findings=_findings(chosen),
        encoder_name=methods.config.encoder.model,
        encoder=methods.encoder,
        token_fingerprint=methods.token_fingerprint(chosen),
        fingerprint=methods.fingerprint(chosen),
        placing=methods.placing(chosen),
        match=chosen.match,
    )


def _findings(of: Protocol) -> Findings:
    """Take over a protocol's threshold and sizes as they are: the site has chosen them."""
    return Findings(
        of.finding_threshold, of.finding_min_volume_ml, of.max_findings, of.findings_per_normal
    )


def of_preset(config: NodeConfig, name: str, cache: Path) -> Recipe:
    """Return the recipe of a preset, with the encoder that a configuration names.

    Raises
    ------
    ConfigError
        There is no such preset, its grid does not fit the encoder's patches, or the encoder cannot
        be loaded.
    WeightsMissing, WeightsMismatch
        What ``[encoder]`` names is not there, or is something else.
    """
    methods = Methods(config.model_copy(update={"protocol": ()}), cache)
    try:
        method = preset(name, methods.card.layers, methods.encoder.depth)
        pitches = method.tokens.pitches(methods.card.patch_size)
        check_grid(method.grid.shape, pitches[0])
    except ValueError as error:
        raise ConfigError(f"--preset {name}: {error}") from error
    placing = Placing(_FOREGROUND.get(name, "body"))
    token_fingerprint = methods.token_digest(method, placing)
    calibrated = method.scoring.calibration != "none"
    rule = Findings() if calibrated else Findings(threshold=None)
    shapes = (asdict(method.search), asdict(method.scoring), asdict(rule))
    return Recipe(
        name=name,
        method=method,
        findings=rule,
        encoder_name=config.encoder.model,
        encoder=methods.encoder,
        token_fingerprint=token_fingerprint,
        fingerprint=digest(token_fingerprint, *shapes),
        placing=placing,
    )
