"""summary.json -> what was evaluated, what was left out and why, and the number of lesions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dicom_node.errors import ConfigError

#: said elsewhere on the page, or in its tables
_ELSEWHERE = ("left_out", "settings", "notice", "metrics", "intervals")
#: too long to be read first
_LONG = ("specification", "options")
_LETTER = re.compile(r"([a-e])[\s,:]+(.*)", re.DOTALL)


class Summary:
    """What summary.json says; a part that it lacks is empty."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self._found = found
        self._left_out = list(_reasons(found.get("left_out")))

    @property
    def head(self) -> dict[str, Any]:
        """Return what is read first."""
        return {k: v for k, v in self._found.items() if k not in (*_ELSEWHERE, *_LONG)}

    @property
    def details(self) -> dict[str, Any]:
        """Return what is looked up."""
        return {name: self._found[name] for name in _LONG if name in self._found}

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Return what the metrics are, in words."""
        found = self._found.get("metrics")
        return found if isinstance(found, Mapping) else {}

    @property
    def intervals(self) -> str:
        """Return how the intervals were made."""
        return str(self._found.get("intervals", ""))

    def left_out(self, letter: str) -> list[str]:
        """Return what of an experiment was left out, and why; "" is what belongs to none."""
        return [reason for place, reason in self._left_out if place == letter]

    def why_missing(self, letter: str) -> str:
        """Return why an experiment has no figures."""
        reasons = self.left_out(letter)
        options = self._found.get("options")
        chosen = options.get("experiments") if isinstance(options, Mapping) else None
        if not reasons and isinstance(chosen, str) and letter not in chosen:
            return f"it was not asked for (--experiments {chosen})."
        return "; ".join(reasons) or "measures.csv has no figure of it, and no reason is given."

    def n_lesions(self, letter: str) -> dict[str, str]:
        """Return size class -> how many lesions were tested in an experiment, as text."""
        counts: dict[str, set[int]] = {}
        settings = self._found.get("settings")
        for setting in settings if isinstance(settings, list) else ():
            if isinstance(setting, Mapping) and setting.get("experiment") == letter:
                for name, n in _mapping(setting.get("n_lesions")).items():
                    counts.setdefault(str(name), set()).add(int(n))
        return {
            name: f"{min(found)}" if len(found) == 1 else f"{min(found)} to {max(found)}"
            for name, found in counts.items()
        }


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _reasons(found: object) -> Iterable[tuple[str, str]]:
    """Yield (letter, reason) from {"a": why}, or from ["a, 30 %: why"]."""
    if isinstance(found, Mapping):
        lines = [f"{name}: {reason}" for name, reason in found.items()]
    else:
        lines = [str(line) for line in found] if isinstance(found, list) else []
    for line in lines:
        match = _LETTER.fullmatch(line)
        yield (match[1], match[2]) if match else ("", line)


def read(path: Path) -> Summary:
    """Read summary.json; an empty one where there is none.

    Raises
    ------
    ConfigError
        It is there and holds no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Summary({})
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no JSON object; run `dicom-node evaluate` again")
    return Summary(found)
