"""What becomes of the rows of one destination: when an object is tried again, and when set aside.

The policy alone; what is sent and asked is in :mod:`dicom_node.delivery` and
:mod:`dicom_node.commitment`. All calls raise DatabaseUnavailable when the ledger does not answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from dicom_node import clock
from dicom_node.errors import DeliveryError
from dicom_node.jobs import DeliveryState, doubled_s
from dicom_node.network_config import AnyDestination, Destination
from dicom_node.store import result_table
from dicom_node.store.database import Database
from dicom_node.store.result_table import DueDelivery


class Outbox:
    """Records outcomes for one destination."""

    def __init__(self, database: Database, destination: AnyDestination) -> None:
        self._database = database
        self._destination = destination

    def acknowledged(self, item: DueDelivery, status: int) -> None:
        """Record a C-STORE response as soon as it is there: a later loss cannot undo it.

        Where the destination is asked whether it commits, the object is not delivered yet.
        """
        of = self._destination
        asks = isinstance(of, Destination) and of.commitment
        at = clock.now()
        with self._database.begin() as db:
            result_table.settle_delivery(
                db,
                self._destination.name,
                [item.sop_instance_uid],
                DeliveryState.STORED if asks else DeliveryState.DELIVERED,
                at,
                status=status,
                not_before=at,
            )

    def set_aside(self, item: DueDelivery, error: DeliveryError) -> None:
        """Record what no retry can deliver."""
        self._settle(item, error, clock.now(), DeliveryState.QUEUED, DeliveryState.DEAD)

    def put_off(
        self,
        error: DeliveryError,
        items: Sequence[DueDelivery],
        *,
        state: DeliveryState = DeliveryState.QUEUED,
        next_state: DeliveryState = DeliveryState.QUEUED,
    ) -> None:
        """Try again later, until the destination's own limit.

        The limit counts from when the object was made, or revived by ``dicom-node retry``.

        Parameters
        ----------
        state
            In which the objects are; one that has left it meanwhile stays as it is.
        next_state
            QUEUED to be sent again, STORED to be asked for again.
        """
        at = clock.now()
        longest = timedelta(seconds=self._destination.give_up)
        for item in items:
            given_up = at - item.created >= longest
            self._settle(item, error, at, state, DeliveryState.DEAD if given_up else next_state)

    def _settle(
        self,
        item: DueDelivery,
        error: DeliveryError,
        at: datetime,
        state: DeliveryState,
        next_state: DeliveryState,
    ) -> None:
        """Record that an object was not delivered, and from when it is due again."""
        of = self._destination
        delay = doubled_s(of.retry_first, of.retry_max, item.attempts)
        with self._database.begin() as db:
            result_table.settle_delivery(
                db,
                of.name,
                [item.sop_instance_uid],
                next_state,
                at,
                of_state=state,
                reason=str(error),
                status=getattr(error, "status", None),
                not_before=at + timedelta(seconds=delay),
            )
