"""The protocols of a node: those of its configuration, then those that it discovered by itself.

A series that no ``[[protocol]]`` claims joins the discovered protocol that was acquired like it, or
founds one: its signature proposes the rule and the settings (:mod:`dicom_node.proposal`), in shadow
mode, and the ledger keeps them. Whoever needs a protocol by name asks :class:`Protocols`; it reads
the ledger each time, so that a worker knows at once what another one founded.

The configuration wins: its rules are asked first, and a discovered protocol whose name a site has
taken into its configuration is the configuration's from then on, its batch included.
"""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any

from pydicom.dataset import Dataset

from dicom_node import clock, protocol
from dicom_node.config import NodeConfig
from dicom_node.errors import ConfigError, NoMatchingProtocol, NotScorable
from dicom_node.folders import Folders
from dicom_node.header import codes
from dicom_node.proposal import DEFAULT_SETTING, Setting, proposed_name, toml, unused_name
from dicom_node.protocol_config import Protocol
from dicom_node.signature import Signature, group, signature
from dicom_node.store import discovered_table, reference_table, series_table
from dicom_node.store.database import Database, migrate

_log = logging.getLogger(__name__)

#: distance of (slices, rows, columns)
Spacing = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Discovered:
    """A protocol that unclaimed series founded; it sends nothing."""

    protocol: Protocol
    #: of the series that founded it: what others are compared with
    founder: Signature
    #: its ``[[protocol]]`` as it would stand in the configuration
    rule: str
    #: moment (ISO 8601)
    founded: str


class Protocols:
    """Every protocol of one node, looked up in its configuration and in its ledger.

    What reads the ledger raises DatabaseUnavailable when that does not answer.
    """

    def __init__(
        self,
        config: NodeConfig,
        database: Database | None = None,
        token_edge: int = DEFAULT_SETTING.token_edge,
    ) -> None:
        """Without a ledger there are the configuration's alone.

        Parameters
        ----------
        token_edge
            Of the coarsest token of the node's encoder, in voxels: the grid of what is founded.
        """
        self.config = config
        self.database = database
        self._setting = Setting(token_edge, config.grouping.min_reference)

    def discovered(self) -> tuple[Discovered, ...]:
        """Return the discovered ones in force, the oldest first."""
        return self._in_force(self._rows())

    def all(self) -> tuple[Protocol, ...]:
        """Return every protocol in force, in the order in which their rules are asked."""
        return (*self.config.protocol, *(entry.protocol for entry in self.discovered()))

    def named(self, name: str) -> Protocol:
        """Return the protocol called `name`; a forgotten one too, whose studies under way end.

        Raises
        ------
        ConfigError
            There is none, as when it was renamed or removed while a study of it was waiting.
        """
        try:
            return self.config.protocol_named(name)
        except ConfigError:
            for row in self._rows():
                if row.name == name:
                    return _parsed(row.rule)
            raise

    def claim(self, header: Dataset, spacing_mm: Spacing) -> Protocol:
        """Return the protocol that claims a series, a new one where nothing like it has come.

        The configuration's rules go first. A discovered protocol claims what its rule asks for and
        what does not differ from its founder, of several the one with the nearest founder.

        Parameters
        ----------
        header
            Of one instance of a volume.
        spacing_mm
            Distance of (slices, rows, columns).

        Raises
        ------
        NoMatchingProtocol
            None claims it, and none may be founded; the message says what did not match.
        NotScorable
            None claims it, and it is a localizer or a derived image, which founds none.
        """
        try:
            return protocol.match(self.config.protocol, header, spacing_mm[0])
        except NoMatchingProtocol as error:
            return self._claim_unclaimed(header, spacing_mm, error)

    def withdraw(self, name: str, uid: str, part: str = "") -> None:
        """Take back a discovered protocol whose first series, or part, turned out to be of no use.

        Nothing happens where other series have come to it, or a person has adopted it.
        """
        if self.database is None or name in {entry.name for entry in self.config.protocol}:
            return
        with self.database.begin() as db:
            alone = series_table.claimed(db, name) == [(uid, part)]
            if alone and not reference_table.fingerprints(db, name):
                discovered_table.forget(db, name, clock.now())
                series_table.clear_protocol(db, [(uid, part)])

    def _claim_unclaimed(
        self, header: Dataset, spacing_mm: Spacing, unclaimed: NoMatchingProtocol
    ) -> Protocol:
        """Let a series that no configured rule claims join a discovered protocol, or found one."""
        fault = unfit(header)
        if fault and self.config.grouping.discover:
            raise NotScorable(f"{fault}; {unclaimed}") from unclaimed
        if fault or self.database is None:
            raise unclaimed
        made = signature(header, spacing_mm)
        found = joined(self.discovered(), made, header, spacing_mm[0])
        if found is not None:
            return found.protocol
        if not self.config.grouping.discover:
            raise unclaimed
        return self._found(self.database, made, header, spacing_mm[0], unclaimed)

    def _found(
        self,
        database: Database,
        made: Signature,
        header: Dataset,
        slice_spacing_mm: float,
        unclaimed: NoMatchingProtocol,
    ) -> Protocol:
        """Record a new protocol, of which a series is the first."""
        # the lock keeps two workers from founding one group twice
        with database.begin() as db:
            present = self._in_force(discovered_table.rows(db))
            found = joined(present, made, header, slice_spacing_mm)
            if found is not None:
                return found.protocol
            self._check_room(len(present), unclaimed)
            taken = discovered_table.names_in_use(db) | {p.name for p in self.config.protocol}
            name = unused_name(proposed_name(made), taken)
            rule = toml(made, name, setting=self._setting)
            founded = _claiming(rule, header, slice_spacing_mm)
            discovered_table.add(db, name, rule, asdict(made), clock.now())
        _log.info("protocol %s is discovered: %s", name, described(made))
        return founded

    def _check_room(self, n_present: int, unclaimed: NoMatchingProtocol) -> None:
        """Refuse a group beyond the limit, and say what to do."""
        most = self.config.grouping.max_discovered
        if n_present >= most:
            raise NoMatchingProtocol(
                f"{most} protocols are discovered already (grouping.max_discovered): adopt or "
                "forget some (`dicom-node reference list` names them), write a [[protocol]] for "
                f"this series, or raise the limit, then `dicom-node retry`; {unclaimed}"
            )

    def _rows(self) -> list[discovered_table.Row]:
        if self.database is None:
            return []
        with self.database.read() as db:
            return discovered_table.rows(db)

    def _in_force(self, rows: Sequence[discovered_table.Row]) -> tuple[Discovered, ...]:
        """Return what is neither forgotten nor adopted by the configuration."""
        configured = {entry.name for entry in self.config.protocol}
        return tuple(
            Discovered(_parsed(row.rule), _signature(row.signature), row.rule, row.founded)
            for row in rows
            if row.forgotten is None and row.name not in configured
        )


def of_node(config: NodeConfig) -> Protocols:
    """Return the protocols of a node that need not run, nor have run: its ledger may be missing.

    The ledger is brought up to date. Raises StoreError where a newer version made it.
    """
    path = Folders(config.node.data_dir).database
    if not path.exists():
        return Protocols(config)
    migrate(path)
    return Protocols(config, Database(path))


# --- one series -------------------------------------------------------------------------------


def joined(
    known: Sequence[Discovered], made: Signature, header: Dataset, slice_spacing_mm: float
) -> Discovered | None:
    """Return the discovered protocol that a series of signature `made` belongs to, or None.

    Its rule claims the series, and its founder is the nearest of those within tolerance.
    """
    claiming = {
        entry.founder: entry
        for entry in reversed(known)  # of two founders alike the older one's stays
        if not protocol.mismatches(entry.protocol.match, header, slice_spacing_mm)
    }
    (nearest,) = group([made], tuple(claiming))
    return claiming.get(nearest.founder)


def unfit(header: Dataset) -> str | None:
    """Return why a series founds no group, whatever else it is like; None where it may.

    References
    ----------
    PS3.3 C.7.6.1.1.2: the first value of Image Type says whether pixels were made from others
    (MIXED of an enhanced image whose frames differ, C.8.13.1.1.1), the second whether the image was
    made after the examination; C.8.2.1.1.1: a localizer, of MR too by habit.
    """
    kinds = codes(header, "ImageType", "FrameType")
    if "LOCALIZER" in kinds:
        return "a localizer, by its ImageType; only volumes are scored"
    if {*kinds[:1]} & {"DERIVED", "MIXED"} or kinds[1:2] == ["SECONDARY"]:
        return (
            f"a derived image, by its ImageType {'/'.join(kinds[:2])}, which founds no group: "
            "write a [[protocol]] where it is to be scored"
        )
    return None


def described(found: Signature) -> str:
    """Return a signature in one line, for people: what is known of it, with units."""
    times = (
        ("TE", found.echo_time_ms, "ms"),
        ("TR", found.repetition_time_ms, "ms"),
        ("TI", found.inversion_time_ms, "ms"),
        ("", found.field_strength_t, "T"),
        ("", found.kvp, "kV"),
        ("slices every", found.slice_spacing_mm, "mm"),
    )
    words = [
        f"{found.modality} {found.body_part or 'of an unnamed region'}",
        "/".join((*found.scanning_sequence, *found.sequence_variant)),
        "/".join(found.image_type),
        f"kernel {found.kernel}" if found.kernel else "",
        "contrast agent" if found.contrast_agent else "",
        found.orientation or "",
    ]
    words += [f"{name} {value:g} {unit}".strip() for name, value, unit in times if value]
    return ", ".join(filter(None, words))


# --- the ledger's texts -----------------------------------------------------------------------


def _claiming(rule: str, header: Dataset, slice_spacing_mm: float) -> Protocol:
    """Return the protocol of a rule; raises NoMatchingProtocol where its founder is not claimed.

    It would found one more with each series of its kind.
    """
    founded = _parsed(rule)
    faults = protocol.mismatches(founded.match, header, slice_spacing_mm)
    if faults:
        raise NoMatchingProtocol(
            f"the rule that its signature proposes does not claim it ({'; '.join(faults)}): "
            "write a [[protocol]] for it"
        )
    return founded


@lru_cache(maxsize=1024)
def _parsed(rule: str) -> Protocol:
    """Return the protocol of a ``[[protocol]]`` as the configuration would read it."""
    (found,) = NodeConfig.model_validate(tomllib.loads(rule)).protocol
    return found


def _signature(values: dict[str, Any]) -> Signature:
    """Return a signature that the ledger keeps as JSON."""
    known = {entry.name for entry in fields(Signature)}
    return Signature(**{name: _tuples(value) for name, value in values.items() if name in known})


def _tuples(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return a value of JSON with tuples for its lists."""
    if isinstance(value, Iterable) and not isinstance(value, str):
        return tuple(map(_tuples, value))
    return value
