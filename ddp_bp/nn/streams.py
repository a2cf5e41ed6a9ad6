"""A stream key for each module, so that what one draws does not depend on what others draw.

Without keys, the draws of a step are numbered in the order in which they come, and a dropout layer added in front
shifts the numbers of all that follow. With keys, each module's draws are numbered on their own.
"""

from __future__ import annotations

import hashlib

from ddp_bp.nn.module import Module


def key_streams(model: Module) -> None:
    """Gives every module of `model` the stream key that its dotted path has, the same in any process.

    A module that stands in several places has the key of the first. Call it once when the model is complete.
    """
    for path, module in model.named_modules():
        digest = hashlib.blake2b(path.encode(), digest_size=8).digest()
        module.stream_key = int.from_bytes(digest, "little")
