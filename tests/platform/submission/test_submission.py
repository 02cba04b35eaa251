"""What is sent to a cluster, which job a name means, what refusals say, logs that break off."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from latentlm_platform import cli
from latentlm_platform.errors import UserError
from latentlm_platform.experiment.files import experiment_key, load_experiment, resolved_yaml
from latentlm_platform.experiment.sections import Experiment
from latentlm_platform.submission import source_package
from latentlm_platform.submission.job_client import Job, JobClient
from latentlm_platform.submission.source_package import Submission, build_package, read_submission
from latentlm_platform.submission.submission import (
    RUN_LINE,
    find_job,
    mlflow_run,
    newest_attempt,
    open_client,
    refuse_paths_of_this_shell,
    resume,
    submission_id,
    submit,
)
from latentlm_platform.tracking.provenance import collect

ROOT = Path(__file__).parents[3]
QUICKSTART = ROOT / "experiments" / "quickstart.yaml"
EXPERIMENTS = sorted(
    path
    for path in (ROOT / "experiments").rglob("*.yaml")
    if path.parent.name != "shared" and path.name != "recorded.yaml"
)
TOKEN = "the-token"
LOG = [f"line {number}\n" for number in range(1, 8)]


class Cluster:
    """A stand-in for a dashboard: jobs in memory, a token, a log whose stream breaks off."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.packages: list[bytes] = []
        self.streams = 0
        self.before_taking: Callable[[], None] = lambda: None
        self.abrupt = False
        self.address = ""

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self.guard], client_max_size=2**28)
        app.router.add_get("/api/version", lambda _: web.json_response({"ray_version": "2.60.0"}))
        app.router.add_get("/api/jobs/", lambda _: web.json_response(list(self.jobs.values())))
        app.router.add_post("/api/jobs/", self.take)
        app.router.add_get("/api/jobs/{id}", self.show)
        app.router.add_get("/api/jobs/{id}/logs", self.log)
        app.router.add_get("/api/jobs/{id}/logs/tail", self.stream)
        app.router.add_get("/api/packages/{protocol}/{name}", self.missing)
        app.router.add_put("/api/packages/{protocol}/{name}", self.receive)
        app.router.add_get("/page", lambda _: web.Response(text="<html>"))
        return app

    @web.middleware
    async def guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        sent = request.headers.get("Authorization")
        if sent is None:
            return web.Response(status=401, text="Unauthorized: Missing authentication token")
        if sent != f"Bearer {TOKEN}":
            return web.Response(status=403, text="Forbidden: Invalid authentication token")
        response: web.StreamResponse = await handler(request)
        return response

    async def take(self, request: web.Request) -> web.Response:
        fields = await request.json()
        self.before_taking()
        name = fields["submission_id"]
        if name in self.jobs:
            return web.Response(
                status=500, text=f"ValueError: Job with submission_id {name} already exists."
            )
        self.jobs[name] = {**fields, "status": "PENDING", "start_time": 1000 * len(self.jobs)}
        return web.json_response({"job_id": name, "submission_id": name})

    async def show(self, request: web.Request) -> web.Response:
        return web.json_response(self.jobs[request.match_info["id"]])

    async def missing(self, request: web.Request) -> web.Response:
        return web.Response(status=404)

    async def receive(self, request: web.Request) -> web.Response:
        self.packages.append(await request.read())
        return web.Response()

    async def log(self, request: web.Request) -> web.Response:
        return web.json_response({"logs": "".join(LOG)})

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """The first streams break off after three and five lines, a later one tells six."""
        self.streams += 1
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for line in LOG[: {1: 3, 2: 5}.get(self.streams, 6)]:
            await socket.send_str(line)
        if self.streams > 2:
            self.jobs[request.match_info["id"]] |= {"status": "FAILED", "driver_exit_code": 3}
        if self.abrupt and request.transport is not None:
            request.transport.abort()
        return socket


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    fake, loop, ready = Cluster(), asyncio.new_event_loop(), threading.Event()

    async def serve() -> web.AppRunner:
        runner = web.AppRunner(fake.application())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        fake.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    def work() -> None:
        runner = loop.run_until_complete(serve())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait(20)
    yield fake
    loop.call_soon_threadsafe(loop.stop)
    thread.join(20)


@pytest.fixture
def client(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> JobClient:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # another cluster's: never asked
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    return JobClient(cluster.address, token=TOKEN)


@pytest.fixture
def experiment() -> Experiment:
    return load_experiment(QUICKSTART)


def test_an_id_is_the_name_and_what_is_computed(experiment: Experiment) -> None:
    key = experiment_key(experiment)
    assert submission_id(experiment) == f"quickstart-{key}"
    renamed = experiment.model_copy(update={"name": "../a b ü/"})
    assert submission_id(renamed).startswith("a-b-")
    assert set(submission_id(renamed)) < set("-.0123456789abcdefghijklmnopqrstuvwxyz")
    elsewhere = load_experiment(QUICKSTART, overrides=["cluster.address=auto", "question=why"])
    other = load_experiment(QUICKSTART, overrides=["train.steps=7"])
    assert submission_id(elsewhere) == submission_id(experiment) != submission_id(other)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_resolved_form_that_travels_has_the_same_key(path: Path, tmp_path: Path) -> None:
    experiment = load_experiment(path)
    kept = tmp_path / "kept.yaml"
    kept.write_text(resolved_yaml(experiment), encoding="utf-8")
    assert submission_id(load_experiment(kept)) == submission_id(experiment)


def test_the_package_is_three_packages_of_one_source(tmp_path: Path) -> None:
    submission = Submission("a-1.2", "a-1", "name: a\n", new=True)
    size = build_package(tmp_path, submission)
    files = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    roots = {file.split("/")[0] for file in files}
    assert roots == {"latentlm", "platform", "dashboards", "git.json", "submitted.json"}
    assert not [file for file in files if ".git/" in file or "__pycache__" in file]
    assert not [file for file in files if file.startswith("platform/") and file.count("/") == 1]
    for package in (
        "latentlm",
        "platform/latentlm_platform",
        "dashboards/latentlm_dashboards",
        "dashboards/paper",
        "dashboards/views",
    ):
        here = {
            str(file.relative_to(ROOT))
            for file in (ROOT / package).rglob("*")
            if file.is_file() and "__pycache__" not in file.parts
        }
        assert here == {file for file in files if file.startswith(f"{package}/")}
    assert 10_000 < size < 5 * 2**20
    assert read_submission(tmp_path) == submission
    assert collect(tmp_path).tags() == collect(ROOT).tags()
    assert collect(tmp_path).commit is not None


def test_a_package_that_is_too_large_is_not_sent(
    cluster: Cluster,
    client: JobClient,
    experiment: Experiment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(source_package, "LIMIT_BYTES", 50_000)
    with pytest.raises(UserError, match=r"a cluster takes .* MiB: remove .*first of all \S+ \("):
        submit(client, experiment)
    assert not cluster.jobs
    assert not cluster.packages


def test_one_experiment_is_one_job_and_new_repeats_it(
    cluster: Cluster, client: JobClient, experiment: Experiment
) -> None:
    base = submission_id(experiment)
    first = submit(client, experiment)
    assert (first.sent, first.job.submission_id) == (True, base)
    again = submit(client, experiment)
    assert (again.sent, again.job.submission_id) == (False, base)
    with pytest.raises(UserError, match="is still PENDING"):
        submit(client, experiment, new=True)
    cluster.jobs[base]["status"] = "SUCCEEDED"
    assert not submit(client, experiment).sent
    with pytest.raises(UserError, match="was submitted with no --home: say the same, or"):
        submit(client, experiment, home="/elsewhere")
    assert submit(client, experiment, new=True).job.submission_id == f"{base}.2"
    cluster.jobs[f"{base}.2"]["status"] = "FAILED"
    assert submit(client, experiment).job.submission_id == f"{base}.3"
    assert len(cluster.packages) >= 3


def test_nothing_of_an_experiment_is_in_the_command(
    cluster: Cluster, client: JobClient, experiment: Experiment
) -> None:
    nasty = experiment.model_copy(update={"question": "$(touch /tmp/x) ${HOME} `id`"})
    submit(client, nasty, home="/state")
    (job,) = cluster.jobs.values()
    assert job["entrypoint"] == "python -m latentlm_platform.commands.submitted"
    assert job["runtime_env"]["env_vars"] == {
        "PYTHONPATH": "platform:dashboards",
        "RAY_JOB_STOP_WAIT_TIME_S": "180",
        "LATENTLM_HOME": "/state",
    }
    assert job["metadata"]["latentlm.key"] == experiment_key(experiment)
    assert len(job["metadata"]["latentlm.git_commit"]) == 40


def test_of_two_shells_at_the_same_moment_one_submits(
    cluster: Cluster, client: JobClient, experiment: Experiment
) -> None:
    base = submission_id(experiment)

    def other_shell() -> None:
        metadata = {"latentlm.key": experiment_key(experiment), "latentlm.name": "quickstart"}
        cluster.jobs[base] = {"submission_id": base, "status": "PENDING", "metadata": metadata}

    cluster.before_taking = other_shell
    assert not submit(client, experiment).sent
    assert list(cluster.jobs) == [base]


def test_what_ended_early_is_resumed_without_its_file(
    cluster: Cluster, client: JobClient, experiment: Experiment
) -> None:
    job = submit(client, experiment, home="/state").job
    with pytest.raises(UserError, match="there is nothing to resume"):
        resume(client, job)
    cluster.jobs[job.submission_id]["status"] = "STOPPED"
    resumed = resume(client, client.job(job.submission_id))
    assert resumed.job.submission_id == f"{job.submission_id}.2"
    assert resumed.job.metadata == job.metadata


def job_named(name: str, **fields: Any) -> Job:
    key = name.rpartition("-")[2].partition(".")[0]
    metadata = {"latentlm.key": key, "latentlm.name": name.partition("-")[0]}
    return Job(name, fields.pop("status", "RUNNING"), metadata, **fields)


def test_a_job_is_found_by_id_key_or_name() -> None:
    first, other = "sigma-0123456789ab", "tau-0f23456789ab"
    jobs = [job_named(n) for n in (f"{first}.10", other, f"{first}.2", first)]
    jobs.append(Job("raysubmit_x", "RUNNING", {}))
    assert find_job(jobs, first).submission_id == f"{first}.10"
    assert find_job(jobs, f"{first}.2").submission_id == f"{first}.2"
    assert find_job(jobs, "sigma-01").submission_id == f"{first}.10"
    assert find_job(jobs, "0f2").submission_id == other
    assert find_job(jobs, "tau").submission_id == other
    assert newest_attempt(jobs, "raysubmit_x") is None
    with pytest.raises(UserError, match="fits several jobs"):
        find_job(jobs, "0")
    with pytest.raises(UserError, match=f"did you mean {first}"):
        find_job(jobs, "sigma-0123456789ac")
    with pytest.raises(UserError, match="known there: none yet"):
        find_job([], "x")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, 0),
        ({"status": "FAILED", "driver_exit_code": 3}, 3),
        ({"status": "FAILED", "driver_exit_code": -9}, 137),
        ({"status": "FAILED"}, 1),
        ({"status": "STOPPED"}, 130),
    ],
)
def test_the_exit_code_is_the_drivers(fields: dict[str, Any], expected: int) -> None:
    assert job_named("a-0123456789ab", **fields).exit_code == expected


@pytest.mark.parametrize("abrupt", [False, True])
def test_a_log_that_breaks_off_goes_on_without_repeats(
    cluster: Cluster, client: JobClient, abrupt: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentlm_platform.submission.job_client.RECONNECT_S", 0.05)
    cluster.abrupt = abrupt
    cluster.jobs["a"] = {"submission_id": "a", "status": "RUNNING"}
    told: list[str] = []
    ended = client.follow("a", told.append)
    assert "".join(told) == "".join(LOG)
    assert cluster.streams == 3
    assert (ended.status, ended.exit_code) == ("FAILED", 3)


def test_a_reader_that_leaves_ends_the_following(cluster: Cluster, client: JobClient) -> None:
    cluster.jobs["a"] = {"submission_id": "a", "status": "RUNNING"}

    def closed(text: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        client.follow("a", closed)


def test_a_cluster_that_stays_away_ends_the_following(
    cluster: Cluster, client: JobClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentlm_platform.submission.job_client.PATIENCE_S", 0.1)
    client.address = "http://127.0.0.1:1"
    with pytest.raises(UserError, match="has not answered for 0 s") as caught:
        client.follow("a", lambda text: None)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("token", "sentence"),
    [(None, "wants a token and none was sent"), ("wrong", "does not take the token")],
)
def test_a_refused_token_is_explained(
    cluster: Cluster,
    token: str | None,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LATENTLM_HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    given = []
    if token:
        (tmp_path / "token").write_text(token)
        given = ["--token-file", str(tmp_path / "token")]
    for command in (["submit", str(QUICKSTART)], ["list"], ["logs", "x"], ["stop", "x"]):
        assert cli.main([*command, "--address", cluster.address, *given]) == 2
        said = capfd.readouterr()
        assert sentence in said.err
        assert "--token-file" in said.err
        assert len(said.err.strip().splitlines()) == 1
    assert not cluster.packages


@pytest.mark.parametrize(
    ("address", "sentence", "code"),
    [
        ("http://127.0.0.1:1", "does not answer", 1),
        ("ray://head:10001", "not over Ray Client", 2),
        ("{}/page?", "not as a Ray dashboard", 2),
        ("{}/nothing", "not as a Ray dashboard", 2),
        ("local", "none of yours is up", 2),
    ],
)
def test_a_wrong_address_is_one_sentence(
    cluster: Cluster,
    address: str,
    sentence: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LATENTLM_HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with pytest.raises(UserError, match=sentence) as caught:
        open_client(address.format(cluster.address)).jobs()
    assert caught.value.exit_code == code


def test_a_file_with_mistakes_is_refused_before_anything_is_asked(
    cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ["submit", str(QUICKSTART), "--set", "train.stpes=3", "--address", cluster.address]
    assert cli.main(asked) == 2
    assert "did you mean steps?" in capfd.readouterr().err
    assert cli.main(["submit", str(QUICKSTART), "--home", "state"]) == 2
    assert "write it in full" in capfd.readouterr().err


def test_paths_relative_to_this_shell_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = load_experiment(QUICKSTART, overrides=["corpus.source=pictures"])
    refuse_paths_of_this_shell(relative)  # not of this shell: the cluster will say
    (tmp_path / "pictures").mkdir()
    with pytest.raises(UserError, match=r"corpus\.source = pictures is relative"):
        refuse_paths_of_this_shell(relative)
    full = load_experiment(QUICKSTART, overrides=[f"corpus.source={tmp_path / 'pictures'}"])
    refuse_paths_of_this_shell(full)


def test_the_run_is_read_from_the_log() -> None:
    line = RUN_LINE.format(key="abc", run_id="77", uri="sqlite:////x/mlflow.db")
    assert mlflow_run(f"noise\n{line}\nmore\n") == {
        "key": "abc",
        "run_id": "77",
        "tracking_uri": "sqlite:////x/mlflow.db",
    }
    assert mlflow_run("nothing yet") == {}


def test_without_an_address_commands_stay_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LATENTLM_HOME", str(tmp_path))
    assert cli.main(["list", "--json", "-"]) == 0
    assert json.loads(capfd.readouterr().out) == []
    for command in ("logs", "status", "stop", "resume"):
        assert cli.main([command, "nothing"]) == 2
        assert "no run is called 'nothing'" in capfd.readouterr().err
    assert cli.main(["cluster", "down"]) == 0
    assert "nothing is up" in capfd.readouterr().out
