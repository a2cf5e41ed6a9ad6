"""Makes the schemas beside it out of a custom resource definition: `python compact.py CRD.yaml >NAME.json`.

Descriptions go, and what a pod is: that is marked, for Kubernetes' own schema to check. Fields that a definition does
not name are errors in the result; a cluster would drop them in silence.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

_KEPT = ("type", "enum", "required", "minimum", "maximum", "minItems", "maxItems", "maxLength", "pattern", "default")
POD_TEMPLATE = {"type": "object", "x-pod-template": True}


def compact(schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema with what the tests need of one in a custom resource definition."""
    properties = schema.get("properties", {})
    if "containers" in properties.get("spec", {}).get("properties", {}):
        return POD_TEMPLATE
    found = {key: schema[key] for key in _KEPT if key in schema}
    if found.get("pattern", "").startswith("^(?i)"):
        # Python takes flags at the beginning alone.
        found["pattern"] = found["pattern"].replace("^(?i)", "(?i)^")
    if schema.get("x-kubernetes-int-or-string"):
        found["type"] = ["integer", "string"]
    if properties:
        found["properties"] = {name: compact(value) for name, value in properties.items()}
        found["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        found["additionalProperties"] = compact(schema["additionalProperties"])
    if "items" in schema:
        found["items"] = compact(schema["items"])
    return found


def main(path: Path) -> None:
    definition = yaml.safe_load(path.read_text())
    spec = definition["spec"]
    (version,) = (version for version in spec["versions"] if version["storage"])
    schema = compact(version["schema"]["openAPIV3Schema"])
    # Every object has them; their own schema is Kubernetes'.
    schema["properties"].pop("status", None)
    schema["properties"]["metadata"] = {"type": "object"}
    schema["x-kind"] = f"{spec['group']}/{version['name']}/{spec['names']['kind']}"
    print(json.dumps(schema, indent=1, sort_keys=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
