"""One word per body region, whatever the sender calls it.

Body Part Examined is optional, is filled in by hand or from a menu, and has a word for every
department's habit. A series that is grouped by it has to be met halfway.

References
----------
PS3.16 Annex L (codes and defined terms of anatomic regions), PS3.3 C.7.6.1 and 10.5 (attributes).
"""

from __future__ import annotations

import re

from pydicom.dataset import Dataset

from dicom_node.header import levels, text, value

#: word -> pattern of whole texts without blanks and signs, upper case. The first that fits speaks,
#: so that "head and neck" is neither, and a spine is not a chest
_REGIONS = {
    "HEADNECK": r"HEAD(AND)?NECK|NECKHEAD",
    "CSPINE": r"(C|CERVICAL)SPINE|SPINEC(ERVICAL)?|CERVICALVERTEBRA.?",
    "TSPINE": r"(T|D|THORACIC|DORSAL)SPINE|SPINET(HORACIC)?|THORACICVERTEBRA.?",
    "LSPINE": r"(L|LS|LUMBAR|LUMBOSACRAL)SPINE|SPINEL(UMBAR)?|LUMBARVERTEBRA.?",
    "SPINE": r"SPINE|VERTEBRAE?|SPINALCORD|WIRBELSAEULE",
    "HEAD": r"HEAD|BRAIN|SKULL|CRANI(UM|AL)|CEREBR(UM|AL)|NEURO|ENCEPHALON|ENTIREHEAD|WHOLEBRAIN"
    r"|KOPF|SCHAEDEL|HIRN|CRANE|TETE|CEREBRO|CRANEO|CABEZA|BRAINSTEM",
    "NECK": r"NECK|HALS|COU|CUELLO|LARYNX|PHARYNX|THYROID",
    "CHESTABDPELVIS": r"(CHEST|THORAX)(AND)?ABD(OMEN)?(AND)?(PEL(VIS)?)|CAP|TAP",
    "CHESTABDOMEN": r"(CHEST|THORAX)(AND)?ABD(OMEN)?",
    "ABDOMENPELVIS": r"ABD(OMEN)?(AND)?PEL(VIS)?",
    "HEART": r"HEART|CARDIAC|CORONARY|CORONARIES|HERZ|COEUR",
    "BREAST": r"BREASTS?|MAMMA",
    "CHEST": r"CHEST|THORAX|THORACIC|LUNGS?|PULMONARY|MEDIASTINUM|BRUST|TORAX",
    "ABDOMEN": r"ABD(OMEN|OMINAL)?|LIVER|HEPATIC|KIDNEYS?|RENAL|PANCREAS|SPLEEN|COLON(OGRAPHY)?"
    r"|COLONOSCOPY|BAUCH|LEBER|UPPERABDOMEN",
    "PELVIS": r"PELVI[SC]|PROSTATE?|UTERUS|BLADDER|RECTUM|BECKEN",
    "KNEE": r"KNEES?|KNIE|GENOU",
    "SHOULDER": r"SHOULDERS?|SCHULTER",
    "HIP": r"HIPS?|HIPJOINT|HUEFTE",
    "ANKLE": r"ANKLES?|ANKLEJOINT",
    "FOOT": r"FOOT|FEET|FUSS",
    "WRIST": r"WRISTS?|WRISTJOINT",
    "HAND": r"HANDS?",
    "ELBOW": r"ELBOWS?",
    "WHOLEBODY": r"WHOLEBODY|WB|ENTIREBODY",
}
#: where a technologist writes what was examined, the most general first: a study of the head is one
#: of the head, whatever a series of it is called
_DESCRIPTIONS = (
    *("StudyDescription", "ProtocolName", "RequestedProcedureDescription", "SeriesDescription"),
    "PerformedProcedureStepDescription",
)


def normalised(text: str) -> str | None:
    """Return one word for a body part as a sender writes it; what is not known stays, in capitals.

    None for a text without a letter.
    """
    word = _letters(text)
    for region, pattern in _REGIONS.items():
        if re.fullmatch(pattern, word):
            return region
    return word or None


def guessed(description: str) -> str | None:
    """Return the region of which a description speaks; None where it names none.

    By whole words, up to three together: "chest abd pelvis", and no head in "headache".
    """
    words = re.findall(r"[A-Z]+", description.upper())
    runs = {"".join(words[at : at + n]) for at in range(len(words)) for n in (1, 2, 3)}
    for region, pattern in _REGIONS.items():
        if any(re.fullmatch(pattern, run) for run in runs):
            return region
    return None


def of_header(header: Dataset) -> tuple[str | None, str | None]:
    """Return the body part and where it was found: None for Body Part Examined itself.

    After it comes Anatomic Region Sequence, also of a frame, then the descriptions; of these only
    the region goes further, never the text.
    """
    stated = normalised(text(value(header, "BodyPartExamined")))
    if stated:
        return stated, None
    coded = normalised(_coded(header))
    if coded:
        return coded, "Anatomic Region Sequence"
    for keyword in _DESCRIPTIONS:
        found = guessed(text(value(header, keyword)))
        if found:
            return found, f"a guess from {keyword}"
    return None, None


def _letters(text: str) -> str:
    """Return the letters and digits of a text, in capitals."""
    return re.sub(r"[^A-Z0-9]", "", text.upper())


def _coded(header: Dataset) -> str:
    """Return the meaning of the anatomic region's code (PS3.3 10.5), of the image or its frames."""
    for level in levels(header):
        for item in (level.get("AnatomicRegionSequence") or [])[:1]:
            return text(value(item, "CodeMeaning"))
    return ""
