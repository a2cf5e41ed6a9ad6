"""The commands. One function each; the composition roots of the package."""
