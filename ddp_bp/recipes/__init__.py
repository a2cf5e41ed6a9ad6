"""Recipes: what to train, as one TOML file that is validated as a whole before anything starts.

`schema` holds the keys with their types and limits, `optimization` those of loss, optimizer and schedule, `blas` those
of the kernels, and `section` what sections have in common. `load` reads a file, applies overrides and reports every
problem at once, in the words of `wording`. The `.toml` files beside them run as they are. This room knows nothing of
tensors, ranks or sockets.
"""

from ddp_bp.recipes.load import load_recipe, packaged_recipes
from ddp_bp.recipes.schema import Recipe

__all__ = ["Recipe", "load_recipe", "packaged_recipes"]
