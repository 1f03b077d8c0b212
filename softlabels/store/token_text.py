"""Ids to text with the store's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from softlabels.errors import TokenizerError
from softlabels.store.reader import Store
from softlabels.store.tokenizer_process import TokenizerProcess

NAME = "tokenizer/tokenizer.json"


class TokenText:
    """Decodes ids; to `<id>` where the tokenizer cannot be had: not installed, not stored, not one it knows.

    A store may come from anywhere, so its tokenizer is in a process of its own (`tokenizer_process.py`). If that ends,
    ids are shown, and `trouble` says why. In a view that renumbers ids the store's tokenizer would say something else,
    so it isn't asked.
    """

    def __init__(self, store: Store) -> None:
        self._tokenizer: TokenizerProcess | None = None
        self.error: str | None = None
        """Why the tokenizer that there is cannot be used; None: nothing went wrong."""
        self._classes = store.manifest.identity.classes
        renumbered = store.view is not None and store.view.table is not None
        if renumbered or NAME not in store.manifest.files or find_spec("tokenizers") is None:
            return
        data = store.file(NAME)
        try:
            self._tokenizer = TokenizerProcess(data, where=store.path / NAME)
        except TokenizerError as e:
            self._give_up(e)

    def _give_up(self, error: TokenizerError) -> None:
        self._tokenizer = None
        self.error = str(error)

    @property
    def trouble(self) -> str | None:
        """A sentence for people: why ids are shown, although there is a tokenizer; None: nothing went wrong."""
        return None if self.error is None else f"{self.error}; ids are shown instead of text"

    @property
    def known(self) -> bool:
        """Whether ids become text."""
        return self._tokenizer is not None

    def one(self, token: int) -> str:
        """A single id."""
        return self.many([token])

    def label(self, label: int) -> str:
        """What a position may be: a class, where the store names them, or a token."""
        if self._classes is not None and 0 <= label < len(self._classes):
            return self._classes[label]
        return self.one(label)

    def many(self, tokens: Sequence[int]) -> str:
        """Ids in a row, as the text they make together."""
        if self._tokenizer is not None:
            try:
                return self._tokenizer.decode(tokens)
            except TokenizerError as e:
                self._give_up(e)
        return "".join(f"<{t}>" for t in tokens)
