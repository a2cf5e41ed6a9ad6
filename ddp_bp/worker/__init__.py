"""Where the rooms meet: one training step, the loop around it, and the link to the coordinator.

`step` is the whole algorithm on a page. `assemble` makes a recipe into a model, data and an optimizer; `loop` repeats
the step and decides what happens between two of them; `snapshot`, `ledger` and `link` carry the results out.
"""
