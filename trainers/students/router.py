"""What a mixture of experts adds to its loss so that its routers use all experts alike (Fedus et al. 2021, §2.2).

The model's own forward computes it, where its configuration has `output_router_logits`; it is multiplied by that one's
`router_aux_loss_coef`. A store's loss takes the place of the model's, so this is added to it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from softlabels.errors import ConfigError


def router_loss(config: Any, outputs: Any) -> Tensor | None:
    """The routers' loss of a forward, multiplied as the model itself would; None: its configuration asks for none.

    Raises:
        ConfigError: the forward did not compute what its configuration asks for.
    """
    text = config.get_text_config()
    coefficient = getattr(text, "router_aux_loss_coef", None)
    if not coefficient or not getattr(text, "output_router_logits", False):
        return None
    found = getattr(outputs, "aux_loss", None)
    if not isinstance(found, Tensor):
        raise ConfigError(
            f"{type(config).__name__}: output_router_logits is set, and the model's forward returns no aux_loss; set "
            "it to false in config.json to train without the routers' loss"
        )
    return float(coefficient) * found
