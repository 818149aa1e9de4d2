"""deploy/ against the code: the flags, ports, names and metrics that its files say are the server's."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from packaging.requirements import Requirement
from prometheus_client import generate_latest
from servers import ROOT

from engine.access.admission import window_of
from engine.backends import BACKENDS
from engine.config import PREFIX, ServerConfig, load_config
from engine.service.latent_engine import SERVICE
from engine.telemetry.metrics import Metrics

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
BASE = KUBERNETES / "base"
CONTAINERFILE = (DEPLOY / "Containerfile").read_text()
OVERLAYS = sorted(path.parent.name for path in KUBERNETES.glob("*/kustomization.yaml"))
DEFAULTS = ServerConfig()
UNITS = {"Mi": 2**20, "Gi": 2**30}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


DEPLOYMENT = read(BASE / "deployment.yaml")
POD = DEPLOYMENT["spec"]["template"]
CONTAINER = POD["spec"]["containers"][0]
CONFIG = load_config(["--bundle", "/bundle", *CONTAINER["args"]], {})


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def size(text: str) -> int:
    return int(text[:-2]) * UNITS[text[-2:]]


def dicts(value: Any) -> Iterator[dict[str, Any]]:
    """All mappings within a document."""
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from dicts(each)


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.yaml")), ids=lambda path: str(path.relative_to(DEPLOY)))
def test_files_are_yaml_and_reachable(path: Path) -> None:
    assert read(path)
    if path.name != "kustomization.yaml" and (kustomization := path.parent / "kustomization.yaml").exists():
        named = read(kustomization)
        assert path.name in [*named["resources"], *(patch.get("path") for patch in named.get("patches", ()))]


def test_the_server_takes_what_the_pod_gives_it() -> None:
    assert (CONFIG.port, CONFIG.metrics_port) == (DEFAULTS.port, 9090)
    names = {name.removeprefix(PREFIX).lower() for name in (variable["name"] for variable in CONTAINER["env"])}
    assert names <= set(vars(DEFAULTS))


def test_ports_and_probes_are_the_server_s() -> None:
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports == {"grpc": CONFIG.port, "metrics": CONFIG.metrics_port}
    assert POD["metadata"]["annotations"]["prometheus.io/port"] == str(CONFIG.metrics_port)
    for kind in ("startup", "readiness", "liveness"):
        probe = CONTAINER[f"{kind}Probe"]["grpc"]
        assert probe["port"] == CONFIG.port
        assert probe.get("service", "") in ("", SERVICE.full_name, HEALTH)
    service = read(BASE / "service.yaml")["spec"]
    assert service["clusterIP"] == "None"
    assert [(port["port"], port["targetPort"]) for port in service["ports"]] == [(CONFIG.port, "grpc")]
    assert set(re.findall(r"^EXPOSE (.*)$", CONTAINERFILE, re.MULTILINE)) == {f"{CONFIG.port} {CONFIG.metrics_port}"}


def test_labels_find_the_pods() -> None:
    labels = POD["metadata"]["labels"]
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == labels
    assert read(BASE / "service.yaml")["spec"]["selector"] == labels
    assert read(BASE / "disruption.yaml")["spec"]["selector"]["matchLabels"] == labels
    assert [one["labelSelector"]["matchLabels"] for one in POD["spec"]["topologySpreadConstraints"]] == [labels]
    assert read(BASE / "autoscaler.yaml")["spec"]["scaleTargetRef"]["name"] == DEPLOYMENT["metadata"]["name"]


def test_the_pod_is_given_time_to_end() -> None:
    pause = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    after_the_grace = 5  # the farewell to connections, and the last batch
    assert POD["spec"]["terminationGracePeriodSeconds"] >= pause + CONFIG.grace_s + after_the_grace


def test_memory_s_limit_holds_what_requests_may_take() -> None:
    queues = 6 * CONFIG.max_queue * 3 * 64**2
    calls = (50_000 + window_of(CONFIG.max_bytes_in_flight)) * 2 * (CONFIG.max_calls_in_flight + 1024)
    messages = 2 * CONFIG.max_bytes_in_flight + (8 + CONFIG.max_streams_in_flight) * CONFIG.max_message_bytes
    models = 500 * 10**6
    assert queues + calls + messages + 20 * CONFIG.max_pixels_in_flight + models <= size(
        CONTAINER["resources"]["limits"]["memory"]
    )


def test_the_autoscaler_s_metric_is_one_of_the_server_s() -> None:
    metrics = Metrics()
    metrics.watch("default", "edit").waiting(7)
    shown = generate_latest(metrics.registry).decode()
    wanted = read(BASE / "autoscaler.yaml")["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert f'{wanted}{{graph="edit",model="default"}} 7.0' in shown
    rule = read(KUBERNETES / "prometheus-adapter.yaml")["rules"]["custom"][0]
    assert rule["name"]["as"] == wanted == rule["seriesQuery"].partition("{")[0]


def test_tls_takes_the_place_of_insecure() -> None:
    arguments, changes = [*CONTAINER["args"]], read(KUBERNETES / "tls" / "tls.yaml")
    for change in changes:
        where, _, index = change["path"].rpartition("/")
        if where.endswith("/args"):
            if change["op"] == "test":
                assert arguments[int(index)] == change["value"]
            else:
                arguments[int(index) : int(index) + (change["op"] == "replace")] = [change["value"]]
    config = load_config(["--bundle", "/bundle", *arguments], {})
    assert config.encrypted
    assert not config.insecure
    mounts = [change["value"][0]["mountPath"] for change in changes if change["path"].endswith("/volumeMounts")]
    assert {str(path.parent) for path in (config.tls_cert, config.tls_key) if path} == set(mounts)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_schemas_hold(overlay: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    if not shutil.which("kubectl"):
        pytest.skip("needs kubectl")
    built = subprocess.run(["kubectl", "kustomize", KUBERNETES / overlay], capture_output=True, text=True, check=True)
    documents = [*yaml.safe_load_all(built.stdout)]
    assert {document["kind"] for document in documents} == {
        "Deployment",
        "Service",
        "PodDisruptionBudget",
        "HorizontalPodAutoscaler",
    }
    for document in documents:
        kubernetes_validate.validate(document, "1.30", strict=True)


def test_the_image_has_what_it_is_made_of() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = {extra for group in re.findall(r"EXTRAS=(\w+(?:,\w+)*)", CONTAINERFILE) for extra in group.split(",")}
    assert extras <= set(project["project"]["optional-dependencies"])
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    files = {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml", "requirements.lock"}
    assert sent == packages | files
    user = POD["spec"]["securityContext"]
    assert f"\nUSER {user['runAsUser']}:{user['runAsGroup']}\n" in CONTAINERFILE
    assert re.findall(rf"{PREFIX}(\w+)=", CONTAINERFILE) == ["BUNDLE"]


@pytest.mark.parametrize("extra", sorted({extra for row in BACKENDS.values() for extra in row.extras.values()}))
def test_the_lock_leaves_an_image_what_its_backend_needs(extra: str) -> None:
    (filtering,) = re.findall(r"^RUN (grep .* requirements\.lock) > constraints\.txt", CONTAINERFILE, re.MULTILINE)
    assert "--constraint constraints.txt" in CONTAINERFILE
    kept = subprocess.run(shlex.split(filtering), cwd=ROOT, capture_output=True, text=True, check=True).stdout
    locked = [Requirement(line) for line in kept.splitlines() if not line.startswith("#")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [Requirement(line) for line in (*project["dependencies"], *project["optional-dependencies"][extra])]
    for need in needed:
        for lock in locked:
            if (need.name, lock.marker is None or lock.marker.evaluate()) == (lock.name, True):
                (pin,) = lock.specifier
                assert need.specifier.contains(pin.version), f"{need} and {lock}"


def test_proxies_allow_what_the_server_does() -> None:
    nginx, envoy = (DEPLOY / "nginx.conf").read_text(), read(DEPLOY / "envoy.yaml")
    sizes = {name: int(value) * 2**20 for name, value in re.findall(r"(client_max_body_size) (\d+)m;", nginx)}
    assert sizes == {"client_max_body_size": DEFAULTS.max_message_bytes}
    assert {float(value) for value in re.findall(r"_timeout (\d+)s;", nginx)} == {DEFAULTS.max_stream_idle_s}
    assert {int(value) for value in re.findall(r"max_concurrent_streams (\d+);", nginx)} == {
        DEFAULTS.max_concurrent_streams
    }
    (cluster,), (listener,) = envoy["static_resources"]["clusters"], envoy["static_resources"]["listeners"]
    assert cluster["per_connection_buffer_limit_bytes"] == DEFAULTS.max_message_bytes
    assert [check["grpc_health_check"]["service_name"] for check in cluster["health_checks"]] == [SERVICE.full_name]
    (manager,) = (each for each in dicts(listener) if "stream_idle_timeout" in each)
    assert seconds(manager["stream_idle_timeout"]) == DEFAULTS.max_stream_idle_s
    assert manager["http2_protocol_options"]["max_concurrent_streams"] == DEFAULTS.max_concurrent_streams


@pytest.mark.skipif(not shutil.which("nginx"), reason="needs nginx")
def test_nginx_reads_its_file() -> None:
    command = ["nginx", "-t", "-q", "-c", str(DEPLOY / "nginx.conf")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
