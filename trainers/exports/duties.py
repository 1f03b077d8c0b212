"""What the licence of a teacher asks of whoever passes a student on, where it is known to ask something.

The targets' licence, which a store states, goes by the teacher's. Two families ask something of models that were
trained on outputs: Llama's community licences (3 and later, 1.b.i) and Gemma's terms (1.1, 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence

UNKNOWN = "unknown"
FAMILIES = {
    "llama": (
        "the licence of Llama asks that the name of a model that was trained on its outputs begins with “Llama”, that "
        "“Built with Llama” is displayed, and that a copy of the licence is passed on"
    ),
    "gemma": (
        "the terms of Gemma call a model that was distilled from it a Model Derivative: pass on the terms and their "
        "use restrictions, and a notice that Gemma is provided under and subject to them"
    ),
}
"""By a word of the licence's name."""


def duties(licences: Sequence[str]) -> list[str]:
    """What to do, or to ask, before passing a student on; a sentence each."""
    found = [
        text
        for word, text in FAMILIES.items()
        if any(word in licence.lower() for licence in licences)
    ]
    if any(licence.lower() == UNKNOWN for licence in licences):
        found.append(
            "a store states no licence of its targets: ask whoever made it, or state it there with softlabels card "
            "STORE --licence …, and export again"
        )
    return found
