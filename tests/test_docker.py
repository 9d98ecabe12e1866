"""The images and the job specs: what they name exists, and what they pass is understood."""

import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import botocore.validate
import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from preprocess import run as preprocess
from preprocess import runner
from tests.ports import free_ports
from tests.tfrecords import datasets
from tests.trainer import commands, networks
from tfrecords import command
from tfrecords.errors import FlagError
from trainer import serve, task

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
SPECS = sorted([*DOCKER.glob("*.yaml"), DOCKER / "dataflow.sh", DOCKER / "train.slurm"])
KUBERNETES = sorted(DOCKER.glob("kubernetes-*.yaml"))
TRAINER = (DOCKER / "trainer.Dockerfile").read_text()


def train(arguments: list[str]) -> Any:
    """Parses the arguments of the trainer's image."""
    command.parse(task.FLAGS, arguments, usage="")
    return task.FLAGS


def prepare(arguments: list[str]) -> Any:
    """Parses the arguments of pre-processing, and Beam's among them."""
    beam = command.parse(preprocess.FLAGS, arguments, usage="", known_elsewhere=runner.flag_names)
    return preprocess.FLAGS, runner.options(beam).get_all_options(drop_default=True)


def documents(path: Path) -> Iterator[dict[str, Any]]:
    yield from yaml.safe_load_all(path.read_text())


def pod(path: Path) -> dict[str, Any]:
    (job,) = [one for one in documents(path) if one["kind"] == "Job"]
    return job["spec"]["template"]["spec"]


def pinned(path: Path) -> dict[str, str]:
    lines = re.findall(r"^([\w.-]+)==(\S+)$", path.read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in lines}


def called(script: Path, tmp_path: Path, status: int = 0) -> list[list[str]]:
    """Runs a script where the programs of its cluster only note how they are called."""
    notes = tmp_path / "notes"
    for name in ("python", "srun", "scontrol"):
        program = tmp_path / name
        code = status if name == "srun" else 0
        program.write_text(
            f'#!{sys.executable}\nimport sys\nopen({str(notes)!r}, "a").write(repr(sys.argv))\n'
            f'open({str(notes)!r}, "a").write("\\n")\nsys.exit({code})\n'
        )
        program.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(script)], env=os.environ | {"PATH": path, "SLURM_JOB_ID": "7"}, cwd=tmp_path
    )
    assert done.returncode == status
    lines = [eval(line) for line in notes.read_text().splitlines()]
    return [[Path(line[0]).name, *line[1:]] for line in lines]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_have_no_known_fault_and_copy_what_is_there(dockerfile):
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, dockerfile], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile.read_text(), re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored, f"{source} would not reach the build"


def test_only_the_beam_worker_may_be_built_for_root():
    users = {path.name: re.findall(r"^USER (.+)$", path.read_text(), re.M) for path in DOCKERFILES}
    assert users == {
        "preprocess.Dockerfile": ["${RUN_AS}"],
        "serve.Dockerfile": ["1000"],
        "trainer.Dockerfile": ["1000"],
    }
    assert "ARG RUN_AS=1000" in (DOCKER / "preprocess.Dockerfile").read_text()


def test_the_image_of_beam_is_of_the_version_that_is_pinned():
    beam = pinned(ROOT / "requirements.lock")["apache-beam"]
    assert f"apache/beam_python3.11_sdk:{beam}\n" in (DOCKER / "preprocess.Dockerfile").read_text()
    assert f"job_server:{beam}\n" in (DOCKER / "flink-compose.yaml").read_text()


def test_all_wheels_of_cuda_are_pinned_to_versions_that_tensorflow_takes():
    pins = pinned(DOCKER / "constraints.txt")
    wanted = [
        one
        for one in map(Requirement, importlib.metadata.requires("tensorflow"))
        if one.marker and one.marker.evaluate({"extra": "and-cuda"}) and "nvidia" in one.name
    ]
    assert len(wanted) >= 10
    for one in wanted:
        assert one.specifier.contains(pins[canonicalize_name(one.name)]), one


def test_no_package_has_two_versions():
    lock, more = pinned(ROOT / "requirements.lock"), pinned(DOCKER / "constraints.txt")
    assert {name for name in lock.keys() & more.keys() if lock[name] != more[name]} == set()


def test_the_server_takes_the_arguments_of_its_image():
    text = (DOCKER / "serve.Dockerfile").read_text()
    python, module, name, *arguments = yaml.safe_load(
        re.findall(r"^ENTRYPOINT (.+)$", text, re.M)[0]
    )
    assert (python, module, name) == ("python", "-m", "trainer.serve")
    command.parse(serve.FLAGS, [*arguments, "--queue=8"], usage="")
    assert f"mkdir -p {serve.FLAGS.model}" in text
    assert f"EXPOSE {serve.FLAGS.port}" in text
    assert f":{serve.FLAGS.port}/healthz" in text


@pytest.mark.parametrize("spec", SPECS, ids=lambda path: path.name)
def test_a_spec_is_edited_in_three_places(spec):
    head, *rest = re.split(r"^(?!#)", spec.read_text(), maxsplit=1, flags=re.MULTILINE)
    body = "".join(rest) if spec.suffix == ".yaml" else spec.read_text()
    assert len(re.findall("# EDIT", body)) == 3, head
    assert "three places marked EDIT" in spec.read_text()


@pytest.mark.parametrize("spec", KUBERNETES, ids=lambda path: path.name)
def test_kubernetes_understands_its_specs(spec):
    for document in documents(spec):
        kubernetes_validate.validate(document, "1.31", strict=True)
        document["spec"]["tpyo"] = 1
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(document, "1.31", strict=True)


@pytest.mark.parametrize("spec", KUBERNETES, ids=lambda path: path.name)
def test_the_trainer_finds_its_folders_in_the_pod(spec):
    (container,) = pod(spec)["containers"]
    given = train(container["args"])
    volumes = {one["name"] for one in pod(spec)["volumes"]}
    mounts = {one["mountPath"]: one for one in container["volumeMounts"]}
    assert {one["name"] for one in mounts.values()} == volumes
    assert "WORKDIR /carbox\n" in TRAINER
    assert mounts[f"/carbox/{given.data}"]["readOnly"]
    assert not mounts[os.path.dirname(f"/carbox/{given.run}")].get("readOnly")
    for folder in ("/carbox/data", "/carbox/runs"):
        assert folder in TRAINER
    assert pod(spec)["securityContext"]["runAsUser"] == 1000
    (job,) = [one for one in documents(spec) if one["kind"] == "Job"]
    exits = {
        rule["action"]: rule["onExitCodes"]["values"]
        for rule in job["spec"]["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    }
    assert exits == {"Ignore": [task.EXIT_PREEMPTED], "FailJob": [FlagError.exit_code]}


def tf_config(index: int) -> tuple[str, dict[str, Any]]:
    """TF_CONFIG of a pod as Kubernetes expands it, and the Job."""
    service, job = documents(DOCKER / "kubernetes-indexed-job.yaml")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    variables = container["env"]
    # A variable may refer to those before it only.
    assert [one["name"] for one in variables] == ["INDEX", "TF_CONFIG"]
    field = variables[0]["valueFrom"]["fieldRef"]["fieldPath"]
    assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert service["metadata"]["name"] == job["spec"]["template"]["spec"]["subdomain"]
    return variables[1]["value"].replace("$(INDEX)", str(index)), job


def test_each_pod_of_the_indexed_job_is_the_worker_of_its_name():
    text, job = tf_config(1)
    found = yaml.safe_load(text)
    pods, name = job["spec"]["completions"], job["metadata"]["name"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    port = container["ports"][0]["containerPort"]
    assert job["spec"]["parallelism"] == pods == 2
    assert found["cluster"]["worker"] == [f"{name}-{i}.{name}:{port}" for i in range(pods)]
    assert found["task"] == {"type": "worker", "index": 1}
    assert train(container["args"]).strategy == "multiworker"


@pytest.mark.slow
def test_the_pods_of_the_indexed_job_join():
    """Two processes with the pods' own TF_CONFIG, but on this machine."""
    from tests.trainer import test_environment as environment

    ports = free_ports(2)
    texts = [tf_config(index)[0] for index in range(2)]
    for number, port in enumerate(ports):
        pods = f"carbox-train-{number}.carbox-train:2222"
        texts = [text.replace(pods, f"localhost:{port}") for text in texts]
    said = environment.joined(*({"TF_CONFIG": text} for text in texts))
    assert [one.split(")")[0] for one in said] == ["(0, 2", "(1, 2"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_pods_of_the_indexed_job_train_by_their_names(tmp_path):
    """Each in a network namespace of its pod's name, with the spec's own variables and flags."""
    if reason := networks.missing():
        pytest.skip(reason)
    (tmp_path / "data" / "tfrecords").mkdir(parents=True)
    datasets.write(str(tmp_path / "data" / "tfrecords"), {"train": [datasets.records(0, 12)]})
    variables = [tf_config(index)[0] for index in range(2)]
    job = tf_config(0)[1]["spec"]["template"]["spec"]
    (container,) = job["containers"]
    hosts = [address.split(":")[0] for address in json.loads(variables[0])["cluster"]["worker"]]
    with networks.lan(hosts) as lan:
        pods = [
            commands.start_program(
                [*lan.command(index), sys.executable, "-m", "trainer.task"]
                + [*container["args"], *commands.SETTINGS],
                folder=tmp_path,
                TF_CONFIG=text,
                PYTHONPATH=str(ROOT),
            )
            for index, text in enumerate(variables)
        ]
        said = [pod.communicate(timeout=900) for pod in pods]
    assert [pod.returncode for pod in pods] == [0, 0], said
    assert "2 replicas" in said[0][0]
    assert (tmp_path / "runs" / "first" / "report.html").exists()


def test_flink_has_a_pool_beside_each_task_manager_and_a_job_that_uses_them():
    (compose,) = documents(DOCKER / "flink-compose.yaml")
    services = compose["services"]
    managers = [name for name, one in services.items() if one.get("command") == "taskmanager"]
    pools = [one for one in services.values() if one.get("command") == ["--worker_pool"]]
    assert {one["network_mode"] for one in pools} == {f"service:{name}" for name in managers}
    assert all("ENTRYPOINT" in (DOCKER / "preprocess.Dockerfile").read_text() for _ in pools)
    job = services["job"]
    assert job["entrypoint"] == ["python", "-m", "preprocess.run"]
    given, beam = prepare(job["command"])
    assert beam["parallelism"] == len(managers) == len(pools) == 2
    assert beam["environment_type"] == "EXTERNAL"
    assert beam["job_endpoint"].split(":")[0] in services
    (mounted,) = {volume.split(":")[1] for one in (*pools, job) for volume in one["volumes"]}
    for path in (given.input, given.output):
        assert f"/carbox/{path}".startswith(f"{mounted}/")
    assert f"mkdir -p {mounted}" in (DOCKER / "preprocess.Dockerfile").read_text()
    # Compose counts from the folder of its file.
    (source,) = {volume.split(":")[0] for volume in job["volumes"]}
    assert (DOCKER / source).resolve() == ROOT / "data"


def test_the_job_of_vertex_ai_is_understood():
    (spec,) = documents(DOCKER / "vertex-job.yaml")
    (pool,) = spec["workerPoolSpecs"]
    given = train(pool["containerSpec"]["args"])
    assert given.data.startswith("/gcs/")
    assert given.run is None  # it is named by baseOutputDirectory
    assert spec["baseOutputDirectory"]["outputUriPrefix"].startswith("gs://")
    # The run is in a bucket, so the image must be built with the extra that reads buckets.
    assert require_extras("vertex-job.yaml") == {"gpu", "gcs"}


def test_the_job_of_sagemaker_is_understood_by_its_interface_and_by_the_trainer():
    (spec,) = documents(DOCKER / "sagemaker-job.yaml")
    service = botocore.session.get_session().get_service_model("sagemaker")
    shape = service.operation_model("CreateTrainingJob").input_shape
    validator = botocore.validate.ParamValidator()
    found = validator.validate(spec, shape)
    assert not found.has_errors(), found.generate_report()
    assert validator.validate(spec | {"Tpyo": 1}, shape).has_errors()
    algorithm = spec["AlgorithmSpecification"]
    entry = re.findall(r"^ENTRYPOINT (.+)$", TRAINER, re.M)[0]
    assert algorithm["ContainerEntrypoint"] == yaml.safe_load(entry)
    given = train(algorithm["ContainerArguments"])
    assert given.strategy == "mirrored"
    assert given.data.startswith("s3://BUCKET/")
    assert given.run.startswith("s3://BUCKET/")
    assert require_extras("sagemaker-job.yaml") == {"gpu", "s3"}


def require_extras(spec: str) -> set[str]:
    """Returns the extras that a spec builds the image with; they exist."""
    (build,) = re.findall(r"^# +(docker build .+)$", (DOCKER / spec).read_text(), re.M)
    (extras,) = re.findall(r"--build-arg EXTRA=(\S+)", build)
    assert '".[${EXTRA}]"' in TRAINER
    provided = importlib.metadata.metadata("carbox").get_all("Provides-Extra")
    assert set(extras.split(",")) <= set(provided)
    return set(extras.split(","))


@pytest.mark.parametrize("spec", SPECS, ids=lambda path: path.name)
def test_the_files_that_a_spec_names_are_there(spec):
    named = re.findall(r"\bdocker/[\w.-]+\w", spec.read_text())
    # Dataflow's script and the compose file name a Dockerfile, the others themselves.
    assert named
    for path in named:
        assert (ROOT / path).is_file(), path


def test_the_launch_of_dataflow_is_understood(tmp_path):
    ((python, module, name, *arguments),) = called(DOCKER / "dataflow.sh", tmp_path)
    assert (python, module, name) == ("python", "-m", "preprocess.run")
    given, beam = prepare(arguments)
    assert given.input == "gs://BUCKET/cars.zip"
    assert given.output == "gs://BUCKET/data/tfrecords"
    assert beam["runner"] == "DataflowRunner"
    assert beam["sdk_container_image"] == "carbox-preprocess:latest"


@pytest.mark.parametrize("status", [0, 1, task.EXIT_PREEMPTED])
def test_slurm_starts_a_run_again_that_has_saved(tmp_path, status):
    srun, *after = called(DOCKER / "train.slurm", tmp_path, status)
    start = srun.index("python")
    assert srun[start : start + 3] == ["python", "-m", "trainer.task"]
    assert train(srun[start + 3 :]).strategy == "multiworker"
    again = shlex.split("scontrol requeue 7")
    assert after == ([again] if status == task.EXIT_PREEMPTED else [])
