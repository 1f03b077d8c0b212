"""Ids to text with the store's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from softlabels.errors import IntegrityError
from softlabels.store.reader import Store

__all__ = ["TokenText"]


class TokenText:
    """Decodes ids; to `<id>` where the tokenizer cannot be had: not installed, not stored, not one it knows.

    In a view that renumbers ids the store's tokenizer would say something else, so it isn't asked.
    """

    def __init__(self, store: Store) -> None:
        self._tokenizer: Any = None
        self._classes = store.manifest.identity.classes
        if store.view is not None and store.view.table is not None:
            return
        try:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_str(store.file("tokenizer/tokenizer.json").decode())
        except IntegrityError:
            raise
        except Exception:  # a bare Exception is what tokenizers raises
            return

    @property
    def known(self) -> bool:
        """Whether ids become text."""
        return self._tokenizer is not None

    def one(self, token: int) -> str:
        """A single id."""
        return self.many([token]) if self.known else f"<{token}>"

    def label(self, label: int) -> str:
        """What a position may be: a class, where the store names them, or a token."""
        if self._classes is not None and 0 <= label < len(self._classes):
            return self._classes[label]
        return self.one(label)

    def many(self, tokens: Sequence[int]) -> str:
        """Ids in a row, as the text they make together."""
        if self._tokenizer is None:
            return "".join(f"<{t}>" for t in tokens)
        return str(self._tokenizer.decode([int(t) for t in tokens], skip_special_tokens=False))
