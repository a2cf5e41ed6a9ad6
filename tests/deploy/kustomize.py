"""What `kubectl kustomize` makes of a folder, for what deploy/kubernetes uses of it: resources, patches, namespace,
images.

Anything else in a kustomization is an error here, so that a test cannot pass over it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]

_KEYS = {"apiVersion", "kind", "namespace", "resources", "patches", "images"}


def expand(folder: Path) -> list[Manifest]:
    """The manifests of a folder with a kustomization, in the order of its resources."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(kustomization) <= _KEYS, f"{folder}: {set(kustomization) - _KEYS} is not known here"
    manifests: list[Manifest] = []
    for resource in kustomization["resources"]:
        path = folder / resource
        manifests += expand(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    for patch in kustomization.get("patches", []):
        change = yaml.safe_load(patch["patch"])
        (changed,) = (index for index, manifest in enumerate(manifests) if _identity(manifest) == _identity(change))
        manifests[changed] = _merged(manifests[changed], change)
    for manifest in manifests:
        if "namespace" in kustomization:
            manifest["metadata"]["namespace"] = kustomization["namespace"]
        for image in kustomization.get("images", []):
            _set_image(manifest, image["name"], f"{image['newName']}:{image['newTag']}")
    return manifests


def _identity(manifest: Manifest) -> tuple[str, str, str]:
    return manifest["apiVersion"], manifest["kind"], manifest["metadata"]["name"]


def _merged(value: Any, change: Any) -> Any:
    """A strategic merge: objects field by field, and the members of lists by their names."""
    if isinstance(change, dict):
        return {**value, **{key: _merged(value[key], part) if key in value else part for key, part in change.items()}}
    if isinstance(change, list):
        changes = {part["name"]: part for part in change}
        assert set(changes) <= {part["name"] for part in value}, "only members that are there can be changed here"
        return [_merged(part, changes.get(part["name"], {})) for part in value]
    return change


def _set_image(node: Any, name: str, new: str) -> None:
    """Every container's image of this name, wherever containers are."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "containers":
                for container in value:
                    if container.get("image") == name:
                        container["image"] = new
            _set_image(value, name, new)
    elif isinstance(node, list):
        for value in node:
            _set_image(value, name, new)
