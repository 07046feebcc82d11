"""What the sections of ``config.toml`` are made of: a strict base, and values with units."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator

from dicom_node import quantities


def _ae_title(value: str) -> str:
    """Check an AE title and drop the spaces around it, which are not significant (PS3.5 6.2)."""
    # the default repertoire without backslash and control characters; spaces alone are no title
    printable = value.isascii() and value.isprintable()
    if not 0 < len(value.strip()) <= 16 or "\\" in value or not printable:
        raise ValueError(f"{value!r} is no AE title: 1 to 16 ASCII characters, no backslash")
    return value.strip()


#: longer than any of them can mean, and short of what a point in time can hold
_LONGEST_S = 3650 * 86400.0

Seconds = Annotated[float, Field(gt=0, le=_LONGEST_S), BeforeValidator(quantities.seconds)]
Bytes = Annotated[int, BeforeValidator(quantities.size_bytes)]
AETitle = Annotated[str, AfterValidator(_ae_title)]
Port = Annotated[int, Field(ge=1, le=65535)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareOrCount = Annotated[float | int, PlainValidator(quantities.share_or_count)]
Millimetres = Annotated[float, Field(gt=0, le=1000)]


class Section(BaseModel):
    """A section of the file: frozen, unknown keys are errors, numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Scale(Section):
    """One of ``encoder.scales``, or of a protocol's: a size of token."""

    upsampling: Literal[1, 2] = 1
    slices_per_token: Annotated[int, Field(ge=1, le=14)] = 1
    #: 0-based blocks; empty takes those of the weights' card
    layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
