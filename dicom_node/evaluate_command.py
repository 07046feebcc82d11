"""The verb ``evaluate``: how the scores behave when the batch varies, on a folder with masks.

What it takes from the command line; the work is imported when it is called, since it loads torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dicom_node.command_line import EncoderOf, Images, Masks, MethodOf, Preset, Scans


def evaluate(
    folders: Scans,
    out: Annotated[Path, typer.Option("--out", help="Where the tables go.")] = Path("evaluation"),
    experiments: Annotated[
        str,
        typer.Option(
            help="a: share of abnormal subjects, b: acquisition, c: batch size, d: parts of the "
            "method, e: peers; run in the order given."
        ),
    ] = "abcde",
    second_site: Annotated[
        Path | None, typer.Option(help="Normal scans of another site, for b.")
    ] = None,
    draws: Annotated[
        int | None, typer.Option(min=1, help="Draws of each batch: 3, or 1 when quick.")
    ] = None,
    size: Annotated[int, typer.Option("--batch-size", min=4, help="Where it does not vary.")] = 20,
    changes: Annotated[
        str,
        typer.Option(
            help="Of b, with commas between: noise, bias field, contrast, blur, resolution, slice "
            "thickness; by default all that the scans can have, every second one with --quick."
        ),
    ] = "",
    quick: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--quick", help="Fewer settings, one draw.")
    ] = False,
    preset: Preset = None,
    config_path: EncoderOf = None,
    protocol: MethodOf = None,
    images: Images = None,
    masks: Masks = None,
) -> None:
    """Measure how the scores behave when the batch varies, on a folder with masks.

    A scan with an empty mask is normal. What is done is kept: called again, it goes on.

    Example: dicom-node evaluate scans --out evaluation --quick
    """
    from dicom_node.evaluate.experiment import Options
    from dicom_node.evaluate.terminal import EvaluateArguments, run_evaluate

    names = tuple(name.strip() for name in changes.split(",") if name.strip())
    options = Options(experiments, draws, size, quick=quick, changes=names)
    where = (folders, out, second_site, preset, config_path, protocol, images, masks)
    raise typer.Exit(run_evaluate(EvaluateArguments(*where, options), Console()))
