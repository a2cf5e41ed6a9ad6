"""The manifests for Kubernetes: right by the real schemas, safe, and of one piece."""

from __future__ import annotations

import json
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kustomize import Manifest, expand

from ddp_bp.cli.train import train
from ddp_bp.recipes import load_recipe

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
SCHEMAS = Path(__file__).parent / "schemas"
OVERLAYS = ("mpi-operator", "trainer")

pytestmark = pytest.mark.parametrize("overlay", OVERLAYS)


def of_kind(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return found


def custom_schemas() -> dict[str, dict[str, Any]]:
    """By API version and kind. The fields of a TrainingRuntime are those of a ClusterTrainingRuntime."""
    schemas = [json.loads(path.read_bytes()) for path in SCHEMAS.glob("*.json")]
    return {schema["x-kind"].replace("/ClusterTrainingRuntime", "/TrainingRuntime"): schema for schema in schemas}


def schema_of(manifest: Manifest) -> dict[str, Any] | None:
    """The schema of a custom resource; None for what Kubernetes itself knows."""
    return custom_schemas().get(f"{manifest['apiVersion']}/{manifest['kind']}")


def templates_in(value: Any, schema: dict[str, Any]) -> Iterator[Manifest]:
    """The pod templates of a custom resource, or of a part of one."""
    if schema.get("x-pod-template"):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            further = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
            yield from templates_in(inner, further or {})
    elif isinstance(value, list):
        for inner in value:
            yield from templates_in(inner, schema.get("items", {}))


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """The pod templates of an overlay by their component: launcher, worker and coordinator."""
    templates = [of_kind(manifests, "Deployment")["spec"]["template"]]
    for manifest in manifests:
        templates += templates_in(manifest, schema_of(manifest) or {})
    found = {template["metadata"]["labels"]["app.kubernetes.io/component"]: template for template in templates}
    assert set(found) == {"launcher", "worker", "coordinator"} and len(templates) == len(found)
    return found


@pytest.mark.parametrize("version", ["1.31.0", "1.37.0"])
def test_every_manifest_is_right_by_the_schemas(overlay: str, version: str) -> None:
    manifests = expand(KUBERNETES / overlay)
    for manifest in [*manifests, *expand(KUBERNETES / "monitoring")]:
        schema = schema_of(manifest)
        if schema is None:
            kubernetes_validate.validate(manifest, version, strict=True)
        else:
            jsonschema.validate(manifest, schema)
    for name, template in pods(manifests).items():
        metadata = {**template["metadata"], "name": name}
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}, version, strict=True
        )
    kinds = {manifest["kind"] for manifest in manifests}
    assert {manifest["kind"] for manifest in expand(KUBERNETES / "monitoring")} == {"ServiceMonitor", "PrometheusRule"}
    assert {"Deployment", "Service", "NetworkPolicy", "PersistentVolumeClaim"} <= kinds


def test_the_schemas_find_a_field_that_does_not_exist(overlay: str) -> None:
    manifest = next(m for m in expand(KUBERNETES / overlay) if m["kind"] in ("MPIJob", "TrainJob"))
    manifest["spec"]["slots"] = 2
    with pytest.raises(jsonschema.ValidationError, match="slots"):
        jsonschema.validate(manifest, schema_of(manifest))


def test_it_is_what_kustomize_makes(overlay: str) -> None:
    """Where kubectl is; the tests' own expansion is what the others go by."""
    expanded = expand(KUBERNETES / overlay)
    assert {manifest["metadata"]["namespace"] for manifest in expanded} == {"ddp-bp"}
    images = {container["image"] for pod in pods(expanded).values() for container in pod["spec"]["containers"]}
    assert images == {"ddp-bp:latest"}
    if shutil.which("kubectl") is not None:
        command = ["kubectl", "kustomize", str(KUBERNETES / overlay)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        made = list(yaml.safe_load_all(done.stdout))
        assert all(manifest in expanded for manifest in made) and len(made) == len(expanded)


def test_pods_have_no_rights_that_they_do_not_need(overlay: str) -> None:
    for component, template in pods(expand(KUBERNETES / overlay)).items():
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 10001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"requests", "limits"} <= set(container["resources"]), component
        assert "memory" in container["resources"]["limits"]
        # Where the root file system cannot be written, these must be.
        writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
        assert writable == {"/runs", "/tmp", "/cache", *(["/dev/shm"] if component != "coordinator" else [])}
        if component == "launcher":
            continue  # It serves nothing, and ends with its job.
        ports = {port["name"] for port in container["ports"]}
        for probe in ("livenessProbe", "readinessProbe"):
            action = container[probe].get("httpGet") or container[probe]["tcpSocket"]
            assert action["port"] in ports


def test_all_parts_name_each_other_rightly(overlay: str) -> None:
    manifests = expand(KUBERNETES / overlay)
    there = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}
    templates = pods(manifests)
    for template in templates.values():
        spec = template["spec"]
        assert ("ServiceAccount", spec["serviceAccountName"]) in there
        for volume in spec["volumes"]:
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in there
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in there
        assert {mount["name"] for mount in spec["containers"][0]["volumeMounts"]} == {
            v["name"] for v in spec["volumes"]
        }
    policy = of_kind(manifests, "NetworkPolicy")
    for template in templates.values():
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    coordinator = templates["coordinator"]
    ports = {port["name"] for port in coordinator["spec"]["containers"][0]["ports"]}
    services = {manifest["metadata"]["name"]: manifest for manifest in manifests if manifest["kind"] == "Service"}
    for service in services.values():
        assert service["spec"]["selector"].items() <= coordinator["metadata"]["labels"].items()
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    assert coordinator["spec"]["hostname"] in services
    # Both operators make one of the job's name, and take none that is not theirs.
    (job,) = (manifest for manifest in manifests if manifest["kind"] in ("MPIJob", "TrainJob"))
    assert job["metadata"]["name"] not in services
    monitor = of_kind(expand(KUBERNETES / "monitoring"), "ServiceMonitor")
    (endpoint,) = monitor["spec"]["endpoints"]
    watched = [
        name
        for name, service in services.items()
        if monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        and monitor["metadata"]["namespace"] == service["metadata"]["namespace"]
        and endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    ]
    assert watched == ["ddp-bp-http"]


def test_there_are_as_many_ranks_as_the_workers_have_slots(overlay: str) -> None:
    manifests = expand(KUBERNETES / overlay)
    container = pods(manifests)["launcher"]["spec"]["containers"][0]
    num_ranks = int(container["args"][container["args"].index("-n") + 1])
    if overlay == "mpi-operator":
        spec = of_kind(manifests, "MPIJob")["spec"]
        assert num_ranks == spec["slotsPerWorker"] * spec["mpiReplicaSpecs"]["Worker"]["replicas"]
        keys, secret = spec["sshAuthMountPath"], "ddp-bp-ssh"
    else:
        job, runtime = of_kind(manifests, "TrainJob")["spec"], of_kind(manifests, "TrainingRuntime")["spec"]
        assert job["runtimeRef"] == {"kind": "TrainingRuntime", "name": "ddp-bp"}
        mpi = runtime["mlPolicy"]["mpi"]
        for policy in (job["trainer"], {**runtime["mlPolicy"], **mpi}):
            assert num_ranks == policy["numNodes"] * policy["numProcPerNode"]
        keys, secret = mpi["sshAuthMountPath"], "ddp-bp-mpi-ssh-auth"
    configs = next(m for m in manifests if m["metadata"]["name"] == "ddp-bp-ssh")["data"]
    assert f"IdentityFile {keys}/id_rsa" in configs["ssh_config"]
    assert f"AuthorizedKeysFile {keys}/authorized_keys" in configs["sshd_config"]
    # By these names the operators keep the keys of a job `ddp-bp`.
    coordinator = pods(manifests)["coordinator"]["spec"]
    (mount,) = (m for m in coordinator["containers"][0]["volumeMounts"] if m["name"] == "keys")
    (volume,) = (v["secret"] for v in coordinator["volumes"] if v["name"] == "keys")
    assert (mount["mountPath"], volume["secretName"]) == (keys, secret)
    assert {item["path"] for item in volume["items"]} == {"id_rsa", "id_rsa.pub", "authorized_keys"}


def test_the_command_and_the_recipe_are_ones_that_ddp_bp_takes(overlay: str, tmp_path: Path) -> None:
    manifests = expand(KUBERNETES / overlay)
    recipe = next(m for m in manifests if m["metadata"]["name"] == "ddp-bp-recipe")["data"]["recipe.toml"]
    (tmp_path / "recipe.toml").write_text(recipe)
    assert tomllib.loads(recipe)["data"]["name"] == "digits"
    container = pods(manifests)["launcher"]["spec"]["containers"][0]
    assert container["command"] == ["ddp-bp", "train"]
    context = train.make_context("train", list(container["args"]))
    loaded, _ = load_recipe(str(tmp_path / "recipe.toml"), context.params["overrides"])
    coordinator = pods(manifests)["coordinator"]["spec"]
    assert context.params["coordinator_shell"][-1] == loaded.coordinator.host == coordinator["hostname"]
    assert {"name": "http", "containerPort": loaded.coordinator.http_port} in coordinator["containers"][0]["ports"]
