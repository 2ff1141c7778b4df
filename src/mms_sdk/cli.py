"""`mms`, and the parser that `%mms` shares with it.

A command is a function of the parsed arguments that returns a value. The terminal prints the value, `--json` prints it
as JSON, a notebook shows it.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import getpass
import json
import math
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args

import mms_sdk
from mms_sdk.errors import InvalidInput, InvalidRequest, MmsError
from mms_sdk.told import on_its_lines

if TYPE_CHECKING:
    from mms_sdk.client.dataset import Dataset
    from mms_sdk.client.jobs import Job
    from mms_sdk.client.manifests import Manifests
    from mms_sdk.client.studies import Study
    from mms_sdk.client.tables import Table
    from mms_sdk.client.workspace import WorkspaceClient

Command = Callable[[argparse.Namespace], Any]
_DATASETS = {
    "list": ((), "all datasets"),
    "show": (("NAME",), "one of them"),
    "head": (("NAME",), "its first rows"),
    "describe": (("NAME",), "its columns in numbers"),
    "ingest": (
        ("NAME", "SOURCE"),
        "bring in a folder of pictures, files by a pattern, tar files of samples, or a table",
    ),
    "watch": (("NAME", "SOURCE"), "bring in what comes into a folder, until interrupted"),
    "clean": (("NAME",), "drop rows and change values by --step, in one snapshot"),
    "join": (("NAME", "LEFT", "RIGHT"), "make it of LEFT's rows, with columns of RIGHT's rows by --on"),
    "concat": (("NAME", "DATASET", "DATASET..."), "make it of the rows of several, end to end"),
    "rejects": (("NAME",), "what its ingest or cleaning left out"),
    "snapshots": (("NAME",), "its snapshots"),
    "diff": (("NAME", "OLDER"), "what became of it since an older snapshot"),
    "tag": (("NAME", "TAG"), "a name for a snapshot"),
    "verify": (("NAME",), "compare every byte with the digests"),
    "compact": (("NAME",), "put small parts together"),
    "expire": (("NAME",), "let old snapshots go"),
    "gc": (("NAME",), "remove what nothing refers to"),
}
_MAKING = ("ingest", "watch")  # what brings something into a workspace makes it if it is not there
_SIDE = 64  # pixels a side that pictures of many sizes are brought to, unless a person says otherwise


class UsageProblem(Exception):
    """The words of a command do not fit; the message says which and how they would."""


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as an interrupt does: what it was doing gets its recorded end."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if message.startswith("the following arguments are required"):
            words = [str(action.metavar or action.dest.upper()) for action in self._get_positional_actions()]
            message = f"usage: {' '.join([self.prog, *words])}; {message}"
        raise UsageProblem(f"{message}{'' if message.endswith('?') else ';'} more: {self.prog} --help")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        asked, unknown = self.parse_known_args(args, namespace)
        if unknown:
            verb = asked.verbs.choices.get(asked.verb, self)
            verb.error(_unknown(unknown[0], verb))
        return asked

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        near = difflib.get_close_matches(str(value), choices, n=1)
        rest = f"did you mean {near[0]}?" if near else f"there are {', '.join(choices)}"
        what = action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest).lower()
        raise argparse.ArgumentError(None, f"there is no {what} {value!r}; {rest}")


def _unknown(word: str, verb: argparse.ArgumentParser) -> str:
    if not word.startswith("-"):
        return f"{word!r} is one word too many for {verb.prog}; put what has spaces or a * in it in quotes"
    option = word.partition("=")[0]
    options = [each for action in verb._actions for each in action.option_strings]
    near = difflib.get_close_matches(option, options, n=1)
    return f"{option} is no option of {verb.prog}" + (f"; did you mean {near[0]}?" if near else "")


def make_parser(prog: str = "mms") -> argparse.ArgumentParser:
    """The whole command tree."""
    parser = _Parser(
        prog=prog, description="Massive Model as a Service: from a folder of data to a model that answers."
    )
    parser.add_argument("--version", action="version", version=f"mms {mms_sdk.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)
    where = _Parser(add_help=False)
    where.add_argument("--workspace", metavar="FOLDER", help="the workspace; $MMS_WORKSPACE or ~/mms-workspace")
    where.add_argument("--url", help="a server instead, e.g. http://127.0.0.1:8765; its token is in $MMS_TOKEN")
    where.add_argument("--json", action="store_true", help="print JSON")

    def verb(name: str, command: Command, told: str, *, aliases: Sequence[str] = ()) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=told, description=told, parents=[where], aliases=list(aliases))
        made.set_defaults(command=command)
        return made

    verb("status", _status, "what is in the workspace")

    demo = verb("demo", _demo, "the whole story on real pictures, in a minute: collect, clean, train, serve, predict")
    demo.add_argument("--data", metavar="FOLDER", help="your own pictures: one sub-folder for each class")
    demo.add_argument("--epochs", type=_positive, default=40, help="passes over the training pictures, at most (40)")

    data = verb("datasets", _datasets, "bring data in, look at it, and look after it", aliases=["data"])
    data.add_argument(
        "action",
        nargs="?",
        choices=list(_DATASETS),
        default="list",
        help="; ".join(f"{' '.join([action, *words])}: {told}" for action, (words, told) in _DATASETS.items()),
    )
    data.add_argument("name", nargs="?", metavar="NAME", help="dataset, e.g. flowers, flowers@7 or flowers@paper")
    data.add_argument("what", nargs="?", metavar="WHAT", help="the folder, snapshot or tag that the action takes")
    data.add_argument("more", nargs="*", metavar="MORE", help="further datasets, for join and concat")
    data.add_argument("--label", metavar="COLUMN", help="for ingest, but of a folder: where the class of a row stands")
    data.add_argument(
        "--keep-all", action="store_true", help="for ingest of files: no cleaning; an unreadable one is an error"
    )
    data.add_argument(
        "--profile",
        choices=("raw", "blosc", "zstd"),
        help="for ingest into a new dataset: fastest, half the room, least room; what suits the place if left out",
    )
    data.add_argument("--rows", type=_positive, default=10, help="for head: how many (10)")
    data.add_argument("--every", type=_duration, default=2.0, help="for watch: from one look to the next (2s)")
    data.add_argument("--settle", type=_duration, default=5.0, help="for watch: how long a file stays as it is (5s)")
    data.add_argument("--keep", type=_positive, default=10, help="for expire: how many of the newest stay (10)")
    data.add_argument(
        "--step", action="append", type=_step, default=[], help="for clean, again and again: 'clip age min=0 max=120'"
    )
    data.add_argument(
        "--on",
        action="append",
        default=[],
        metavar="KEY",
        help="for join: a column, or LEFT=RIGHT; for ingest: local or ray, as a job of that engine",
    )
    data.add_argument("--how", choices=["inner", "left"], default="inner", help="for join: left keeps all rows (inner)")
    data.add_argument("--many", choices=["refuse", "first"], default="refuse", help="for join: of rows with one key")
    data.add_argument("--suffix", default="", help="for join: behind names of RIGHT that LEFT has too, e.g. _2")
    data.add_argument(
        "--missing", choices=["refuse", "null"], default="refuse", help="for concat: columns that are not in all"
    )
    data.add_argument("--grace", type=_hours, default=48.0, help="for gc: hours since anybody touched it (48)")

    train = verb("train", _train, "train a picture classifier on a dataset and register it")
    train.add_argument("dataset", help="e.g. flowers or flowers@7")
    train.add_argument("--register", metavar="NAME", help="model to register it as; the dataset's name if left out")
    _add_training(train)
    train.add_argument("--check", action="store_true", help="try one of everything in seconds, and train nothing")
    train.add_argument("--resume", metavar="JOB", help="go on from that job's newest checkpoint, with the same options")

    plan = verb("plan", _plan, "what a training would need of a target: memory, time and cost; nothing is read or run")
    plan.add_argument("dataset", help="e.g. flowers or flowers@7")
    plan.add_argument(
        "--target", default="local", metavar="DEVICES", help="e.g. h100:8, v5e:8x8 or v5p:4x4x4; this machine (local)"
    )
    plan.add_argument(
        "--prices", type=_prices, default={}, metavar="PRICES", help="per device and hour, e.g. h100=2.5,v5e=1.2"
    )
    plan.add_argument("--compile", action="store_true", help="for a TPU: ask its compiler for the memory")
    plan.add_argument("--choose", action="store_true", help="try every mesh for the target, and list them")
    _add_training(plan)

    tune = verb("tune", _tune, "run a script again and again with other values, and find the best ones")
    tune.add_argument("script", nargs="?", metavar="SCRIPT", help="a path, e.g. train.py, or a module")
    tune.add_argument(
        "--space",
        action="append",
        type=_range,
        default=[],
        metavar="NAME=RANGE",
        help="again and again: lr=log:1e-5:1e-2, drop=0.0:0.5, layers=1:4, units=log:16:512, width=64,128",
    )
    tune.add_argument("--metric", help="what trials are compared by, e.g. val/accuracy")
    tune.add_argument("--direction", choices=["minimize", "maximize"], help="losses and errors lower, others higher")
    tune.add_argument("--trials", type=_positive, help="how many (20, or all points of a grid)")
    tune.add_argument("--sampler", choices=["tpe", "random", "grid"], default="tpe", help="how values are found (tpe)")
    tune.add_argument("--pruner", type=_pruner, metavar="HOW", help="end poor trials early: asha, or hyperband:EPOCHS")
    tune.add_argument("--parallel", type=_positive, default=1, help="trials at once (1)")
    tune.add_argument("--seed", type=int, default=0, help="of the sampler (0)")
    tune.add_argument("--max-failures", type=_positive, default=3, help="failed trials in a row that end it (3)")
    tune.add_argument("--env", action="append", default=[], metavar="NAME", help="a variable that trials see, too")
    tune.add_argument("--name", help="for people; the script's name if left out")
    tune.add_argument("--resume", metavar="STUDY", help="go on with that one instead, which was stopped or killed")

    studies = verb("studies", _studies, "list studies")
    studies.add_argument("--limit", type=_positive, default=20, help="how many, the newest first (20)")
    study = verb("study", _study, "show a study and its trials")
    study.add_argument("study", metavar="ID")
    study.add_argument("--trial", type=_whole, metavar="NUMBER", help="only that trial, with what its script printed")

    run = verb("run", _run, "run a script as a job, which goes on without this terminal")
    run.add_argument("--on", default="local", choices=["local", "ray"], help="this machine or a cluster (local)")
    run.add_argument("--nodes", type=_positive, default=1, help="machines; what else is asked for is of each (1)")
    run.add_argument(
        "--min-nodes", type=_positive, help="with how many it goes on when machines are gone; all if left out"
    )
    run.add_argument("--processes", type=_positive, default=1, help="on each node, as one jax.distributed cluster (1)")
    run.add_argument("--cpus", type=_positive, help="cores it takes; all if left out, so that jobs run one by one")
    run.add_argument("--gpus", type=_whole, help="GPUs it takes; all if left out")
    run.add_argument("--memory", metavar="SIZE", help="the most it may hold, e.g. 8GB")
    run.add_argument("--time", metavar="TIME", help="the most an attempt may take, e.g. 2h, 30min or 90s")
    run.add_argument("--mesh", type=_mesh, help="of trainers in it that name none, e.g. data=2,fsdp=4")
    run.add_argument("--retries", type=_whole, default=3, help="further attempts after what was not its doing (3)")
    run.add_argument("--priority", type=int, default=0, help="of those that wait, the highest is next (0)")
    run.add_argument("--preemptible", action="store_true", help="it makes room for those of a higher priority")
    run.add_argument("--project", default="default", help="whose quota it counts against (default)")
    run.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="again and again: a variable")
    run.add_argument("--secret", action="append", default=[], metavar="NAME", help="again and again: a secret it sees")
    run.add_argument(
        "--requirement", action="append", default=[], metavar="PACKAGE", help="again and again: e.g. 'einops>=0.8'"
    )
    run.add_argument("--folder", help="a folder of code that goes along; the script lies in it")
    run.add_argument("--name", help="for people; the script's name if left out")
    run.add_argument("--key", help="asked again with the same key, nothing runs twice")
    run.add_argument("--watch", action="store_true", help="show what it prints until it ends")
    run.add_argument("script", metavar="SCRIPT", help="a path, e.g. train.py; what follows it is the script's own")
    run.add_argument("args", nargs=argparse.REMAINDER, metavar="ARG", help="for the script")

    engine = verb("engine", _engine, "a Ray of this machine's own, to try clusters with; manifests for Kubernetes")
    _add_engine_actions(engine, where)

    jobs = verb("jobs", _jobs, "list jobs, show one, what runs and waits, or remove what old ones left")
    jobs.add_argument(
        "job",
        nargs="?",
        help="id of one to show; top for what runs, with what it takes, and waits; clean to remove what old ones left",
    )
    jobs.add_argument("--older-than", metavar="AGE", help="for clean: those that ended longer ago, e.g. 30d, 2w, 12h")
    jobs.add_argument("--keep", type=_whole, default=0, help="for clean: how many of the newest stay, however old (0)")
    jobs.add_argument("--dry-run", action="store_true", help="for clean: only say what would be removed")
    jobs.add_argument("--limit", type=_positive, default=20, help="how many, the newest first (20)")

    logs = verb("logs", _logs, "what a job printed")
    logs.add_argument("job", metavar="JOB", help="its id")
    logs.add_argument("--attempt", type=_positive, help="of which attempt; of the newest if left out")
    logs.add_argument("--rank", type=_whole, default=0, help="of which of its processes (0)")
    logs.add_argument("--follow", action="store_true", help="and what it prints, until it ends")
    stop = verb("stop", _stop, "stop a job, with all that it started")
    stop.add_argument("job", metavar="JOB", help="its id")
    again = verb("retry", _retry, "run a job that has ended anew")
    again.add_argument("job", metavar="JOB", help="its id")

    quotas = verb("quotas", _quotas, "how much the jobs of a project may take at once: list, set one, or remove it")
    quotas.add_argument("action", nargs="?", choices=["list", "set", "remove"], default="list", help="which (list)")
    quotas.add_argument("project", nargs="?", metavar="PROJECT", help="whose, e.g. vision")
    quotas.add_argument("--cpus", type=_whole, help="cores, of all its running jobs together; any if left out")
    quotas.add_argument("--gpus", type=_whole, help="likewise GPUs")
    quotas.add_argument("--memory", metavar="SIZE", help="likewise memory that they ask for, e.g. 64GB")

    secrets = verb("secrets", _secrets, "values that jobs see as variables: list their names, set one, or remove it")
    secrets.add_argument("action", nargs="?", choices=["list", "set", "remove"], default="list", help="which (list)")
    secrets.add_argument("name", nargs="?", metavar="NAME", help="e.g. HF_TOKEN; set asks for the value or reads it")

    _add_tokens(verb("tokens", _tokens, "who may ask a server: list tokens, create, rotate or revoke one"))

    audit = verb("audit", _audit, "who changed what through a server and who was refused; whether that is all of it")
    audit.add_argument("action", nargs="?", choices=["show", "verify"], default="show", help="which (show)")
    audit.add_argument("--since", type=_ago, metavar="TIME", help="for show: an age, e.g. 2h, or a number")
    audit.add_argument("--head", metavar="NUMBER:SHA256", help="for verify: what it told once, kept elsewhere")

    models = verb("models", _models, "list models, show one, or point an alias at a version")
    models.add_argument("model", nargs="?", help="e.g. flowers or flowers@3")
    models.add_argument("--alias", metavar="NAME", help="an alias for that version, e.g. champion")

    predict = verb("predict", _predict, "ranked classes of pictures; with --to, of a whole dataset or folder")
    predict.add_argument("model", help="e.g. flowers or flowers@champion; with --url, the deployment")
    predict.add_argument("inputs", nargs="+", metavar="INPUT", help="pictures; with --to a dataset or folder")
    predict.add_argument("--to", metavar="FILE", help="write a Parquet file with one row for each input")
    predict.add_argument("--on", choices=["local", "ray"], help="as a job of that engine, which keeps the file")
    predict.add_argument("--top", type=_positive, help="best classes only; 3 are shown, with --to all are written")

    evaluate = verb("evaluate", _evaluate, "how well a model answers rows whose answer is known, and how sure that is")
    evaluate.add_argument("model", metavar="MODEL", help="e.g. flowers or flowers@champion")
    evaluate.add_argument("data", metavar="DATA", help="a dataset or split, e.g. flowers/test")
    evaluate.add_argument("--against", metavar="MODEL", help="compare with that version, on the same rows")
    evaluate.add_argument(
        "--slice", action="append", default=[], metavar="COLUMN", help="again and again: metrics by its values, too"
    )
    evaluate.add_argument("--to", metavar="FILE", help="write the whole report: report.html or report.json")
    evaluate.add_argument("--on", choices=["local", "ray"], help="as a job of that engine, which outlives this")
    evaluate.add_argument("--confidence", type=_above_zero, default=0.95, help="of the intervals (0.95)")
    evaluate.add_argument("--resamples", type=_positive, default=1000, help="of the bootstrap (1000)")
    evaluate.add_argument("--seed", type=_whole, default=0, help="of the bootstrap (0)")

    serve = verb("serve", _serve, "serve the workspace and its models over REST on this machine")
    serve.add_argument("models", nargs="*", metavar="MODEL", help="deployed under their names, e.g. flowers@champion")
    serve.add_argument("--host", default="127.0.0.1", help="an address; others than loopback take TLS (127.0.0.1)")
    serve.add_argument("--port", type=int, default=8765, help="0 for any that is free (8765)")
    serve.add_argument("--unix", metavar="PATH", help="a socket at PATH instead, for this user alone")
    serve.add_argument("--tls-cert", metavar="FILE", help="a certificate, and those between it and a root")
    serve.add_argument("--tls-key", metavar="FILE", help="its private key")
    serve.add_argument(
        "--behind-proxy", action="append", default=[], metavar="ADDRESS", help="of a proxy in front, which does TLS"
    )
    serve.add_argument("--name", action="append", default=[], metavar="HOST", help="what it is called, for other hosts")
    serve.add_argument("--source-root", action="append", default=[], metavar="FOLDER", help="ingests may read below it")

    backup = verb("backup", _backup, "copy the workspace to another place, while jobs go on; only what is new is sent")
    backup.add_argument("to", help="a folder, or a URL such as s3://bucket/folder")
    backup.add_argument("--keep", type=_positive, help="let older copies go, and keep so many")
    replicate = verb("replicate", _replicate, "back up again and again, until interrupted")
    replicate.add_argument("to", help="a folder, or a URL")
    replicate.add_argument("--every", type=_duration, default=3600.0, help="e.g. 30s, 15min, 1h (1h)")
    replicate.add_argument("--keep", type=_positive, default=24, help="how many of the newest copies stay (24)")
    backups = verb("backups", _backups, "list the copies in a place")
    backups.add_argument("where", help="a folder, or a URL")
    verify = verb(
        "verify", _verify, "compare every byte of the workspace, or of the copies in a place, with its digest"
    )
    verify.add_argument("where", nargs="?", help="a folder with copies, or a URL; the workspace if left out")
    verify.add_argument("--backup", metavar="ID", help="only that copy")
    for name, command, told in (
        ("restore", _restore, "make a workspace of a copy"),
        ("promote", _promote, "make the newest copy the workspace that is gone on with"),
    ):
        made = verb(name, command, f"{told}, in the folder --workspace")
        made.add_argument("source", metavar="FROM", help="a folder with copies, or a URL")
        made.add_argument("--datasets", metavar="URL", help="where its datasets are to lie; in the workspace")
        if name == "restore":
            made.add_argument("--backup", metavar="ID", help="which; the newest")

    verb("doctor", _doctor, "look at the installation, the devices and the workspace")
    verb("version", _version, "the version of MMS")
    helped = verb("help", _help, "this page, or that of a verb")
    helped.add_argument("about", nargs="?", metavar="VERB")
    parser.set_defaults(parser=parser, verbs=verbs)
    return parser


def _add_tokens(verb: argparse.ArgumentParser) -> None:
    actions = ["list", "create", "rotate", "revoke"]
    verb.add_argument("action", nargs="?", choices=actions, default="list", help="which (list)")
    verb.add_argument("name", nargs="?", metavar="NAME", help="what the token is for, e.g. ci")
    verb.add_argument(
        "--role", choices=["predict", "viewer", "editor", "admin"], help="for create: what it may do (predict)"
    )
    verb.add_argument("--project", metavar="PROJECT", help="for create: whose tokens it may see and make; all")
    verb.add_argument("--expires", type=_lifetime, metavar="TIME", help="e.g. 12h, 30d or never; create: 90d")
    verb.add_argument("--rate", type=_above_zero, metavar="N", help="for create: most requests a second, on average")
    verb.add_argument("--burst", type=_positive, metavar="N", help="for create: requests that may come at once")
    verb.add_argument("--concurrent", type=_positive, metavar="N", help="for create: most requests at the same time")
    verb.add_argument("--overlap", type=_duration, metavar="TIME", help="for rotate: how long the old text is good")


def _add_engine_actions(verb: argparse.ArgumentParser, where: _Parser) -> None:
    actions = verb.add_subparsers(dest="action", metavar="ACTION", parser_class=_Parser)
    told = "start a Ray of this machine's own, and print the variables by which MMS finds it"
    up = actions.add_parser("up", help=told, description=told, parents=[where])
    up.set_defaults(command=_engine_up)
    up.add_argument("name", nargs="?", choices=["ray"], default="ray", metavar="ENGINE", help="ray")
    up.add_argument("--nodes", type=_positive, default=1, help="on which jobs run, beside the head (1)")
    up.add_argument("--cpus", type=_positive, help="of each; its share of this machine's if left out")
    told = "end it, with all that runs on it"
    down = actions.add_parser("down", help=told, description=told, parents=[where])
    down.set_defaults(command=_engine_down)
    down.add_argument("name", nargs="?", choices=["ray"], default="ray", metavar="ENGINE", help="ray")
    _add_rendering(actions, where)


def _add_rendering(actions: Any, where: _Parser) -> None:
    told = "write manifests that kubectl apply takes; no cluster is spoken to"
    kinds = actions.add_parser("render", help=told, description=told).add_subparsers(
        dest="kind", metavar="KIND", parser_class=_Parser, required=True
    )
    both = _Parser(add_help=False)
    both.add_argument("--image", required=True, help="with Python and mms-sdk, for kuberay with Ray as well")
    both.add_argument("--name", help="in the cluster; that of the script or model if left out")
    both.add_argument("--namespace", help="where it runs; that of whoever applies it if left out")
    both.add_argument("--service-account", metavar="NAME", help="as which it runs")
    both.add_argument("--user", type=_positive, metavar="NUMBER", help="of the user in the pods (1000)")
    both.add_argument("--claim", metavar="NAME", help="the volume claim with the workspace")
    both.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="again and again: a variable")
    both.add_argument(
        "--secret", action="append", default=[], metavar="NAME=SECRET/KEY", help="likewise, whose value a Secret has"
    )
    both.add_argument("--cpus", type=_positive, help="cores of a pod that works (4)")
    both.add_argument("--gpus", type=_whole, help="GPUs of a pod that works (0)")
    both.add_argument("--memory", metavar="SIZE", help="of a pod that works, e.g. 64GiB (16GiB)")
    both.add_argument("--nodes", type=_whole, help="how many pods work; of a service for kuberay, for jobs")
    both.add_argument("--queue", metavar="NAME", help="the Kueue queue to wait in")
    both.add_argument("--ray-version", metavar="VERSION", help="for kuberay: which Ray the image has")
    both.add_argument("--to", metavar="FILE", help="write it there instead of printing it")

    told = "a script, or a command of the image, that runs to its end"
    job = kinds.add_parser("job", help=told, description=told, parents=[where, both])
    job.set_defaults(command=_render_job)
    job.add_argument("--for", dest="engine", required=True, metavar="ENGINE", help="jobset or kuberay")
    job.add_argument("--processes", type=_positive, help="for kuberay: processes of each node (1)")
    job.add_argument("--tpu", metavar="SLICE", help="for jobset: a slice of TPUs, e.g. v5e:4x4, which says the nodes")
    job.add_argument("--time", metavar="TIME", help="the most an attempt may take, e.g. 2h, 30min or 90s")
    job.add_argument("--retries", type=_whole, help="further attempts after what was not its doing (3)")
    job.add_argument("--key", help="for kuberay: applied again with the same key, nothing runs twice")
    job.add_argument("--keep", type=_duration, metavar="TIME", help="how long what has ended stays, e.g. 1d")
    job.add_argument("--grace", type=_duration, metavar="TIME", help="from being asked to stop to being ended (30s)")
    job.add_argument("--folder", help="a folder of code that goes along; the script lies in it")
    job.add_argument("--command", dest="is_command", action="store_true", help="the words are a command of the image")
    job.add_argument("script", metavar="SCRIPT", help="a path, e.g. train.py; what follows it is the script's own")
    job.add_argument("args", nargs=argparse.REMAINDER, metavar="ARG", help="for the script")

    told = "a server of the workspace and its models, that goes on until it is deleted"
    service = kinds.add_parser("service", help=told, description=told, parents=[where, both])
    service.set_defaults(command=_render_service)
    service.add_argument("--for", dest="engine", required=True, metavar="ENGINE", help="deployment or kuberay")
    service.add_argument("--port", type=_positive, help="in its pod, on the loopback address (8765)")
    service.add_argument("--tls", metavar="SECRET", help="with a certificate, for a proxy that the cluster reaches")
    service.add_argument("--proxy-image", metavar="IMAGE", help="of that proxy; nginx, as a user that is not root")
    service.add_argument("--max-nodes", type=_positive, help="for kuberay: as many where Ray asks for more")
    service.add_argument("--node-cpus", type=_positive, help="for kuberay: cores of a node for jobs (4)")
    service.add_argument("--node-gpus", type=_whole, help="for kuberay: GPUs of a node for jobs (0)")
    service.add_argument("--node-memory", metavar="SIZE", help="for kuberay: of a node for jobs (16GiB)")
    service.add_argument("models", nargs="*", metavar="MODEL", help="served under their names, e.g. flowers@champion")


def _add_training(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--model", default="convnet", help="model family, e.g. convnet (the default), mlp or resnet")
    verb.add_argument("--size", type=_positive, help=f"resize to SIZE×SIZE; {_SIDE} where pictures differ in size")
    verb.add_argument("--epochs", type=_positive, default=20, help="passes over the training pictures, at most (20)")
    verb.add_argument("--batch-size", type=_positive, help="pictures in a step; 128, or fewer where there are few")
    verb.add_argument("--learning-rate", type=_above_zero, default=3e-3, help="of AdamW (0.003)")
    verb.add_argument("--patience", type=_positive, default=6, help="epochs without a lower loss until it stops (6)")
    verb.add_argument("--mesh", type=_mesh, default={"data": -1}, help="e.g. data=2,fsdp=4; -1 for the rest (data=-1)")
    verb.add_argument("--weights", metavar="FILE", help="begin with weights that are there, e.g. of ImageNet")
    verb.add_argument("--freeze", action="append", default=[], metavar="REGEX", help="parameters that are not learnt")
    verb.add_argument("--balanced", action="store_true", help="each class weighs the same, however rare")
    verb.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32", help="to compute in (fp32)")
    verb.add_argument("--accumulate", type=_positive, default=1, help="parts that a batch is worked off in (1)")
    verb.add_argument("--clip-norm", type=_above_zero, help="longest gradient")
    verb.add_argument("--ema", type=_above_zero, help="decay of an average of the parameters, e.g. 0.999")
    verb.add_argument("--seed", type=int, default=0, help="of initial values, order and augmentation (0)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit code: 0; 1 for an error, also of a part; 2 for words that do not fit; 130 or 143 when interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        asked = make_parser().parse_args(words or ["help"])
        with _terminable():
            value = asked.command(asked)
        if value is not None:
            print(json.dumps(to_json(value), indent=2) if asked.json else value, flush=True)
        return int(isinstance(value, _Facts) and value.incomplete)
    except UsageProblem as problem:
        print(f"mms: {on_its_lines(str(problem))}", file=sys.stderr)
        return 2
    except MmsError as error:
        print(f"mms: {on_its_lines(error.message)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        _interrupt_jobs()
        terminated = isinstance(stop, _Terminated)
        told = ["terminated" if terminated else "interrupted", *getattr(stop, "__notes__", ())]
        print(f"mms: {on_its_lines('; '.join(told))}", file=sys.stderr)
        return 143 if terminated else 130
    except SystemExit as stop:
        if not hasattr(stop, "__notes__"):
            raise
        # A training has noticed the SIGTERM itself, and says where it stands.
        _interrupt_jobs()
        print(f"mms: {on_its_lines('; '.join(['terminated', *stop.__notes__]))}", file=sys.stderr)
        return 143
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _interrupt_jobs() -> None:
    # Only if any can be there: what runs them takes long to load.
    if runners := sys.modules.get("mms_sdk.service.jobs"):
        runners.interrupt_jobs()


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():  # only there may signals be handled
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def to_json(value: Any) -> Any:
    """A command's value as JSON, which has no NaN and no infinity: they are null."""
    if isinstance(value, list):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {name: to_json(item) for name, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    record = getattr(value, "record", None) or getattr(value, "info", None) or value
    return record.model_dump(mode="json") if hasattr(record, "model_dump") else record


class _Facts(dict[str, Any]):
    """Names and values, one a line; `incomplete` if some of what was asked for is not among them."""

    incomplete = False

    def __str__(self) -> str:
        from mms_sdk.client.tables import pairs, terminal_width

        return pairs(self, width=terminal_width())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from mms_sdk import html

        return html.facts("MMS", self)


def _connect(asked: argparse.Namespace, *, make: bool = False) -> WorkspaceClient:
    # Nobody named the default one, so that it is no slip of the pen: it may be made.
    from mms_sdk.client.workspace import connect
    from mms_sdk.settings import WORKSPACE_VARIABLE

    named = asked.workspace or os.environ.get(WORKSPACE_VARIABLE)
    return connect(asked.url, workspace=asked.workspace, make=make or not named)


def _listed(table: Table[Any], workspace: WorkspaceClient, asked: argparse.Namespace) -> Any:
    return table if table or asked.json or _in_notebook(asked) else f"{table!r} in {workspace.where}"


def _status(asked: argparse.Namespace) -> Any:
    return _Facts(_connect(asked).status())


def _demo(asked: argparse.Namespace) -> Any:
    from mms_sdk.demo import run_demo

    if asked.url:
        raise InvalidRequest("the demo trains in this process, in a workspace folder; leave --url out")
    report = run_demo(
        _connect(asked, make=True), data=Path(asked.data) if asked.data else None, epochs=asked.epochs, quiet=asked.json
    )
    return report if asked.json else None


def _datasets(asked: argparse.Namespace) -> Any:
    from mms_sdk.client.pages import text
    from mms_sdk.client.tables import terminal_width
    from mms_sdk.schema.names import parse_dataset_ref

    words, _ = _DATASETS[asked.action]
    given = [word for word in (asked.name, asked.what, *asked.more) if word is not None]
    several = any(word.endswith("...") for word in words)
    if asked.action in _MAKING and len(given) > len(words):
        raise UsageProblem(_several_sources(asked, given[1:]))
    if len(given) < len(words) or (len(given) > len(words) and not several):
        raise UsageProblem(f"usage: mms datasets {' '.join([asked.action, *words])}; more: mms help datasets")
    workspace = _connect(asked, make=asked.action in _MAKING)
    datasets = workspace.datasets
    plain = asked.json or _in_notebook(asked)
    match asked.action:
        case "list":
            return _listed(datasets.list(), workspace, asked)
        case "snapshots":
            return datasets.snapshots(asked.name)
        case "head":
            return datasets.get(asked.name).head(asked.rows)
        case "describe":
            return datasets.get(asked.name).describe()
        case "rejects":
            return datasets.get(asked.name).rejects()
        case "diff":
            told = datasets.get(asked.name).diff(asked.what)
            return told if plain else _Facts({"snapshots": told.refs, **told.facts()})
        case "tag":
            datasets.get(asked.name).tag(asked.what)
            return datasets.snapshots(parse_dataset_ref(asked.name).name)
        case "expire":
            gone = datasets.expire(asked.name, keep=asked.keep)
            return {"expired": list(gone)} if plain else _Facts({"expired": ", ".join(map(str, gone)) or "none"})
        case "verify" | "compact" | "gc":
            work: dict[str, Callable[[str], Any]] = {
                "verify": datasets.verify,
                "compact": datasets.compact,
                "gc": partial(datasets.collect_garbage, grace_s=3600 * asked.grace),
            }
            job = work[asked.action](asked.name)
            return job if plain else job.outcome
        case "ingest" if asked.on:
            source, clean = _source(asked)
            return _shown(datasets.ingest(asked.name, source, clean=clean, on=asked.on[-1]), asked)
        case "watch":
            source, clean = _source(asked)
            return datasets.watch(asked.name, source, every_s=asked.every, settle_s=asked.settle, clean=clean, say=_say)
    dataset = _made(workspace, asked)
    return dataset if plain else text(dataset, width=terminal_width())


def _several_sources(asked: argparse.Namespace, sources: Sequence[str]) -> str:
    # What a shell made of a pattern that it was not kept from filling in.
    folders = {str(Path(each).parent) for each in sources}
    suffixes = {Path(each).suffix for each in sources}
    pattern = f"{folders.pop() if len(folders) == 1 else '**'}/*{suffixes.pop() if len(suffixes) == 1 else ''}"
    return (
        f"mms datasets {asked.action} takes one source; got {len(sources)}; put a pattern in quotes, so that the shell "
        f"leaves it as it is: mms datasets {asked.action} {asked.name} {shlex.quote(pattern)}"
    )


def _made(workspace: WorkspaceClient, asked: argparse.Namespace) -> Dataset:
    datasets = workspace.datasets
    match asked.action:
        case "ingest":
            return _ingest(workspace, asked)
        case "clean":
            if not asked.step:
                raise UsageProblem("steps are said one by one, e.g. --step drop-missing --step 'clip age min=0'")
            return datasets.get(asked.name).clean(asked.step)
        case "join":
            on = {left: right or left for left, _, right in (key.partition("=") for key in asked.on)}
            if not on:
                raise UsageProblem("a join is by a key that both datasets have; name it: --on KEY or --on LEFT=RIGHT")
            return datasets.join(
                asked.name,
                left=asked.what,
                right=asked.more[0],
                on=on,
                how=asked.how,
                many=asked.many,
                suffix=asked.suffix,
            )
        case "concat":
            return datasets.concat(asked.name, [asked.what, *asked.more], missing=asked.missing)
    return datasets.get(asked.name)


def _step(text: str) -> Any:
    # A step and its fields: by place, or name=value. Values are JSON where they read like it.
    from mms_sdk.schema.cleaning import PictureStep, TableStep

    kinds = {kind.model_fields["step"].default: kind for kind in (*get_args(PictureStep), *get_args(TableStep))}
    try:
        name, *words = shlex.split(text)
        kind = kinds[name]
    except (ValueError, KeyError) as error:
        raise argparse.ArgumentTypeError(f"a step is one of {', '.join(sorted(kinds))}; got {text!r}") from error
    placed: list[Any] = []
    fields: dict[str, Any] = {}
    for word in words:
        field, told, value = word.partition("=")
        if told and field in kind.model_fields:
            fields[field] = _value(name, field, value)
        else:
            placed.append(_value(name, next(iter(kind.by_place[len(placed) :]), ""), word))
    try:
        return kind(*placed, **fields)
    except InvalidRequest as error:
        raise argparse.ArgumentTypeError(error.message) from error


def _value(step: str, field: str, text: str) -> Any:
    if (step, field) in (("drop-duplicates", "by"), ("drop-missing", "columns")):
        return tuple(text.split(","))
    if field in ("min", "max", "value", "distance", "similarity", "min_share"):
        with contextlib.suppress(ValueError):
            return json.loads(text)
    return text


def _ingest(workspace: WorkspaceClient, asked: argparse.Namespace) -> Dataset:
    source, clean = _source(asked)
    return workspace.datasets.ingest(asked.name, source, clean=clean, profile=asked.profile)


def _source(asked: argparse.Namespace) -> tuple[Any, Sequence[Any]]:
    from mms_sdk.client.datasets import source_of
    from mms_sdk.schema.cleaning import CleanStep, DropDuplicates, DropOddSizes, DropUnreadable
    from mms_sdk.schema.sources import Files, ImageFolder, WebDataset

    source = source_of(asked.what)
    clean: list[CleanStep] = []
    if isinstance(source, ImageFolder | Files | WebDataset) and not asked.keep_all:
        clean = [DropUnreadable(), DropDuplicates()]
    if isinstance(source, ImageFolder):
        clean += [] if asked.keep_all else [DropOddSizes()]
    else:
        source = type(source)(path=source.path, label=asked.label)
    return source, clean


def _train(asked: argparse.Namespace) -> Any:
    from mms_sdk.schema.names import check_name

    workspace = _connect(asked)
    dataset = workspace.datasets.get(asked.dataset)
    name = check_name(asked.register or dataset.name, what="model")
    if asked.check:
        found = _trainer(asked, dataset).check(dataset)
        if asked.json:
            return found.to_json()
        return found if _in_notebook(asked) else on_its_lines(str(found))
    result = _trainer(asked, dataset).fit(dataset, resume=asked.resume, progress="none" if asked.json else "auto")
    metrics = result.evaluate("test") if "test" in dataset.splits else {}
    version = workspace.models.register(name, result.best, metrics=metrics)
    return version if asked.json or _in_notebook(asked) else _Facts(version.facts())


def _plan(asked: argparse.Namespace) -> Any:
    dataset = _connect(asked).datasets.get(asked.dataset)
    plan = _trainer(asked, dataset).plan(dataset, asked.target, prices=asked.prices, compile=asked.compile)
    told = plan.choose() if asked.choose else plan
    if asked.json:
        return told.to_json()
    return told if _in_notebook(asked) else on_its_lines(str(told))


def _trainer(asked: argparse.Namespace, dataset: Dataset) -> Any:
    import optax

    from mms_sdk.compute import models
    from mms_sdk.compute.data.preprocess import image
    from mms_sdk.compute.training.policies import EarlyStopping
    from mms_sdk.compute.training.tasks import Classification
    from mms_sdk.compute.training.trainer import Trainer

    size = asked.size or (_SIDE if dataset.picture_shape is None else None)
    begun = {"init_from": asked.weights} if asked.weights else {}
    return Trainer(
        model=models.by_name(asked.model, num_classes=dataset.num_classes, **begun),
        task=Classification(class_weight="balanced" if asked.balanced else None),
        optimizer=optax.adamw(asked.learning_rate),
        preprocess=[*([image.Resize(size)] if size else []), image.Normalize(), image.RandomShift(1)],
        mesh=asked.mesh,
        batch_size=asked.batch_size,
        epochs=asked.epochs,
        precision=asked.precision,
        accumulate=asked.accumulate,
        clip_norm=asked.clip_norm,
        ema=asked.ema,
        freeze=asked.freeze,
        stop=EarlyStopping("val/loss" if "val" in dataset.splits else "train/loss", patience=asked.patience),
        seed=asked.seed,
    )


def _tune(asked: argparse.Namespace) -> Any:
    progress: Literal["auto", "none"] = "none" if asked.json else "auto"
    if asked.resume:
        if asked.script or asked.space or asked.metric:
            raise UsageProblem("a study goes on with what it began with: mms tune --resume STUDY, and nothing else")
        return _told(_connect(asked).studies.get(asked.resume).resume(progress=progress), asked)
    if not (asked.script and asked.space and asked.metric):
        raise UsageProblem("usage: mms tune SCRIPT --space NAME=RANGE --metric METRIC; more: mms help tune")
    study = _connect(asked).tune(
        asked.script,
        space=dict(asked.space),
        metric=asked.metric,
        direction=asked.direction,
        trials=asked.trials,
        sampler=asked.sampler,
        pruner=asked.pruner,
        parallel=asked.parallel,
        seed=asked.seed,
        max_failures=asked.max_failures,
        environment=asked.env,
        name=asked.name,
        progress=progress,
    )
    return _told(study, asked)


def _told(study: Study, asked: argparse.Namespace) -> Any:
    return study if asked.json or _in_notebook(asked) else _Facts(study.facts())


def _studies(asked: argparse.Namespace) -> Any:
    workspace = _connect(asked)
    return _listed(workspace.studies.list(asked.limit), workspace, asked)


def _study(asked: argparse.Namespace) -> Any:
    study = _connect(asked).studies.get(asked.study)
    if asked.trial is not None:
        trial = study.trial(asked.trial)
        plain = asked.json or _in_notebook(asked)
        return trial if plain else f"{_Facts(trial.facts())}\n\n{on_its_lines(trial.logs())}".rstrip()
    if asked.json:
        return {**to_json(study), "trials": to_json(list(study.trials))}
    return study if _in_notebook(asked) else f"{_Facts(study.facts())}\n\n{study.trials!r}"


def _range(text: str) -> tuple[str, Any]:
    # NAME=log:LOW:HIGH, NAME=LOW:HIGH, or NAME=VALUE,VALUE; whole numbers where all that is said is whole.
    from mms_sdk.schema.tuning import Choice, Integer, LogUniform, Uniform

    name, _, told = text.partition("=")
    log = told.startswith("log:")
    ends = [_spoken(word) for word in told.removeprefix("log:").split(":")]
    try:
        if len(ends) == 2 and all(type(end) in (int, float) for end in ends):
            if all(type(end) is int for end in ends):
                return name, Integer(low=ends[0], high=ends[1], log=log)
            return name, (LogUniform if log else Uniform)(low=ends[0], high=ends[1])
        if name and told and not log and ":" not in told:
            return name, Choice(values=tuple(_spoken(word) for word in told.split(",")))
    except InvalidRequest as error:
        raise argparse.ArgumentTypeError(f"{name}: {error.message}") from error
    raise argparse.ArgumentTypeError(
        f"a range is e.g. lr=log:1e-5:1e-2, drop=0.0:0.5, layers=1:4 or width=64,128; got {text!r}"
    )


def _spoken(word: str) -> Any:
    # A number, a truth or none as JSON has it; any other word is itself. NaN is no value.
    with contextlib.suppress(ValueError):
        value = json.loads(word)
        if value is None or isinstance(value, int | float):
            return value
    return word


def _pruner(text: str) -> Any:
    from mms_sdk.schema.tuning import ASHA, Hyperband

    how, _, epochs = text.partition(":")
    try:
        if how == "asha":
            return ASHA(min_epochs=int(epochs or 1))
        if how == "hyperband":
            return Hyperband(max_epochs=int(epochs))
    except ValueError as error:  # InvalidRequest is one, too
        raise argparse.ArgumentTypeError(
            f"poor trials are ended by asha, asha:MIN_EPOCHS or hyperband:EPOCHS; got {text!r}: {error}"
        ) from error
    raise argparse.ArgumentTypeError(f"poor trials are ended by asha or hyperband:EPOCHS; got {text!r}")


def _run(asked: argparse.Namespace) -> Any:
    from mms_sdk.schema.job import Resources, Retry

    variables = dict(_variable(each) for each in asked.env)
    job = _connect(asked, make=True).jobs.submit(
        asked.script,
        args=asked.args,
        folder=asked.folder,
        name=asked.name,
        on=asked.on,
        resources=Resources(**{field: getattr(asked, field) for field in Resources.model_fields}),
        mesh=asked.mesh,
        retry=Retry(times=asked.retries),
        environment=variables,
        secrets=asked.secret,
        requirements=asked.requirement,
        priority=asked.priority,
        preemptible=asked.preemptible,
        project=asked.project,
        key=asked.key,
    )
    if asked.watch:
        job = job.wait(progress=False) if asked.json else job.watch()
    return _shown(job, asked)


def _engine(asked: argparse.Namespace) -> Any:
    raise UsageProblem("usage: mms engine up, down or render; more: mms engine up --help, mms engine render --help")


def _render_job(asked: argparse.Namespace) -> Any:
    from mms_sdk.client import manifests

    options = _given(asked, "tpu", "processes", "time", "retries", "key")
    options |= {name: round(value) for name, value in (("keep_s", asked.keep), ("grace_s", asked.grace)) if value}
    if asked.is_command:
        code: dict[str, Any] = {"command": [asked.script, *asked.args]}
    else:
        code = {"script": Path(asked.script), "args": asked.args, "folder": asked.folder}
    return _rendered(manifests.job(**code, **_pods(asked), **options), asked)


def _render_service(asked: argparse.Namespace) -> Any:
    from mms_sdk.client import manifests

    options = _given(asked, "port", "tls", "proxy_image", "max_nodes", "node_cpus", "node_gpus", "node_memory")
    return _rendered(manifests.service(*asked.models, **_pods(asked), **options), asked)


def _pods(asked: argparse.Namespace) -> dict[str, Any]:
    told = _given(asked, "name", "namespace", "service_account", "user", "claim", "queue", "ray_version")
    counted = _given(asked, "cpus", "gpus", "memory", "nodes")
    variables = {"environment": dict(map(_variable, asked.env)), "secrets": dict(map(_variable, asked.secret))}
    return {"engine": asked.engine, "image": asked.image, **told, **counted, **variables}


def _given(asked: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(asked, name)) is not None}


def _rendered(made: Manifests, asked: argparse.Namespace) -> Any:
    if asked.to:
        return _Facts({"written": str(made.save(asked.to))})
    return list(made) if asked.json else made if _in_notebook(asked) else str(made).removesuffix("\n")


def _variable(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise UsageProblem(f"a variable is NAME=VALUE; got {text!r}")
    return name, value


def _secrets(asked: argparse.Namespace) -> Any:
    if (asked.name is None) != (asked.action == "list"):
        raise UsageProblem("usage: mms secrets list, mms secrets set NAME, or mms secrets remove NAME")
    secrets = _connect(asked, make=asked.action == "set").secrets
    if asked.action == "set":
        secrets.set(asked.name, _told_in_secret(asked))
    elif asked.action == "remove":
        secrets.remove(asked.name)
    else:
        return secrets.list()
    return None


def _quotas(asked: argparse.Namespace) -> Any:
    if (asked.project is None) != (asked.action == "list"):
        raise UsageProblem("usage: mms quotas list, mms quotas set PROJECT --gpus 4, or mms quotas remove PROJECT")
    quotas = _connect(asked, make=asked.action == "set").quotas
    if asked.action == "set":
        quotas.set(asked.project, cpus=asked.cpus, gpus=asked.gpus, memory=asked.memory)
    elif asked.action == "remove":
        quotas.remove(asked.project)
    else:
        return quotas.list()
    return None


def _tokens(asked: argparse.Namespace) -> Any:
    if (asked.name is None) != (asked.action == "list"):
        raise UsageProblem("usage: mms tokens list, or mms tokens create, rotate or revoke NAME")
    tokens = _connect(asked, make=asked.action == "create").tokens
    if asked.action == "list":
        return tokens.list()
    if asked.action == "revoke":
        return _Facts(tokens.revoke(asked.name).model_dump())
    options = _given(asked, "role", "project", "burst", "concurrent")
    if asked.rate is not None:
        options["requests_per_s"] = asked.rate
    if asked.expires is not None:
        options["lifetime_s"] = round(asked.expires) if asked.expires else None
    if asked.action == "rotate":
        if asked.overlap is not None:
            options["overlap_s"] = round(asked.overlap)
        if asked.expires == 0:
            raise UsageProblem("a token is rotated for a time, e.g. --expires 30d, or for as long as it was made for")
        if surplus := options.keys() - {"lifetime_s", "overlap_s"}:
            raise UsageProblem(f"a token is rotated as it is, without {', '.join(sorted(surplus))}; create another")
        made = tokens.rotate(asked.name, **options)
    else:
        made = tokens.create(asked.name, **options)
    if _in_notebook(asked):
        return made
    told = made.token.model_dump(mode="json")
    return told | {"text": made.text} if asked.json else _Facts(told | {"token, shown this once": made.text})


def _audit(asked: argparse.Namespace) -> Any:
    audit = _connect(asked).audit
    if asked.action == "verify":
        head = audit.verify(asked.head)
        return head if asked.json else f"{head.number:,} lines, none changed; the end of the log is {head}"
    entries = list(audit.entries(since=asked.since or 0))
    return entries if asked.json else "\n".join(map(str, entries)) or "nothing yet"


def _told_in_secret(asked: argparse.Namespace) -> str:
    # Never a word of the command: those stand in the shell's history and in every list of processes.
    if _in_notebook(asked) or sys.stdin.isatty():
        return getpass.getpass(f"value of {asked.name}: ")
    return sys.stdin.read().removesuffix("\n")


def _logs(asked: argparse.Namespace) -> Any:
    job = _connect(asked).jobs.get(asked.job)
    if asked.follow:
        job.watch(rank=asked.rank)
        return None
    text = job.logs(attempt=asked.attempt, rank=asked.rank)
    return text if asked.json else text.removesuffix("\n")


def _stop(asked: argparse.Namespace) -> Any:
    return _shown(_connect(asked).jobs.get(asked.job).cancel(), asked)


def _retry(asked: argparse.Namespace) -> Any:
    return _shown(_connect(asked).jobs.get(asked.job).retry(), asked)


def _shown(job: Job, asked: argparse.Namespace) -> Any:
    return job if asked.json or _in_notebook(asked) else _Facts(job.facts())


def _jobs(asked: argparse.Namespace) -> Any:
    workspace = _connect(asked)
    if asked.job is None:
        return _listed(workspace.jobs.list(asked.limit), workspace, asked)
    if asked.job == "top":
        return _listed(workspace.jobs.top(), workspace, asked)
    if asked.job == "clean":
        if asked.older_than is None:
            raise UsageProblem("what is old is said: mms jobs clean --older-than 30d; more: mms help jobs")
        job = workspace.jobs.clean(older_than=asked.older_than, keep=asked.keep, dry_run=asked.dry_run)
        return job if asked.json or _in_notebook(asked) else job.outcome
    return _shown(workspace.jobs.get(asked.job), asked)


def _engine_up(asked: argparse.Namespace) -> Any:
    from mms_sdk.compute.engines.ray.private import HOME, start_cluster

    variables = start_cluster(HOME, nodes=asked.nodes, cpus=asked.cpus).variables()
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return variables if asked.json else "\n".join(lines)


def _engine_down(asked: argparse.Namespace) -> None:
    from mms_sdk.compute.engines.ray.private import HOME, end_cluster

    end_cluster(HOME)


def _models(asked: argparse.Namespace) -> Any:
    if asked.alias and asked.model is None:
        raise UsageProblem("an alias points at a version; name it: mms models MODEL[@VERSION] --alias NAME")
    workspace = _connect(asked)
    if asked.model is None:
        return _listed(workspace.models.list(), workspace, asked)
    version = workspace.models.get(asked.model)
    if asked.alias:
        version = workspace.models.alias(version.model, asked.alias, version)
    return version if asked.json or _in_notebook(asked) else _Facts(version.facts())


def _predict(asked: argparse.Namespace) -> Any:
    from mms_sdk.schema.names import parse_model_ref

    workspace = _connect(asked)
    if asked.to or asked.on:
        if asked.to and asked.on:
            raise UsageProblem("predictions are written by --to, or kept by a job, --on; leave one of them out")
        if len(asked.inputs) != 1:
            raise UsageProblem(
                f"--{'to' if asked.to else 'on'} takes one dataset or folder; got {len(asked.inputs)} inputs"
            )
        if asked.on:
            job = workspace.predict(asked.model, data=asked.inputs[0], on=asked.on, top=asked.top or 0)
            return _shown(job, asked)
        return workspace.predict(asked.model, data=asked.inputs[0], to=asked.to, top=asked.top or 0)
    if workspace.embedded:
        name = parse_model_ref(asked.model).name
        deployment = workspace.deployments.create(name, model=asked.model, max_batch=1)
    else:
        deployment = workspace.deployments.get(asked.model)
    if len(asked.inputs) == 1 and _in_notebook(asked):
        return deployment.predict(asked.inputs[0], top=asked.top or 0)
    told = _Facts()
    for picture in asked.inputs:  # what cannot be answered does not cost the others their answers
        try:
            prediction = deployment.predict(picture, top=asked.top or 3)
        except InvalidInput as error:
            if len(asked.inputs) == 1:
                raise
            told.incomplete = True
            told[picture] = {"error": error.message} if asked.json else f"no answer: {error.message}"
        else:
            ranked = (f"{label} {score:.1%}" for label, score in prediction.top(asked.top or 3))
            told[picture] = prediction.model_dump(mode="json") if asked.json else "  ".join(ranked)
    return told


def _evaluate(asked: argparse.Namespace) -> Any:
    from mms_sdk.client.evaluations import report_path
    from mms_sdk.client.jobs import Job

    if asked.to and asked.on:
        raise UsageProblem("a report is written by --to once there is one; with --on, leave it out")
    if asked.to:
        report_path(asked.to)  # what cannot be written is said before anything is measured
    told = _connect(asked).evaluate(
        asked.model,
        data=asked.data,
        against=asked.against,
        slices=asked.slice,
        confidence=asked.confidence,
        resamples=asked.resamples,
        seed=asked.seed,
        on=asked.on,
    )
    if isinstance(told, Job):
        return _shown(told, asked)
    if asked.to:
        told.save(asked.to)
    return told if asked.json or _in_notebook(asked) else str(told)


def _serve(asked: argparse.Namespace) -> Any:
    from mms_sdk.service.listening import Listening
    from mms_sdk.service.server import serve
    from mms_sdk.settings import default_catalog, default_datasets, default_workspace
    from mms_sdk.storage.workspace import Workspace

    if asked.url:
        raise InvalidRequest("mms serve is the server; leave --url out")
    files = {
        name: Path(told).expanduser().absolute()
        for name in ("unix", "tls_cert", "tls_key")
        if (told := getattr(asked, name))
    }
    proxies, names = tuple(asked.behind_proxy), tuple(asked.name)
    listening = Listening(host=asked.host, port=asked.port, proxies=proxies, names=names, **files)
    folder = Path(asked.workspace) if asked.workspace else default_workspace()
    workspace = Workspace(folder, catalog=default_catalog(), datasets=default_datasets())
    roots = [Path(root).expanduser().absolute() for root in asked.source_root]
    serve(workspace, listening=listening, models=asked.models, source_roots=roots, say=_say)


def _backup(asked: argparse.Namespace) -> Any:
    return _connect(asked).backup(asked.to, keep=asked.keep)


def _replicate(asked: argparse.Namespace) -> None:
    _connect(asked).replicate(asked.to, every_s=asked.every, keep=asked.keep, say=_say)


def _backups(asked: argparse.Namespace) -> Any:
    from mms_sdk.client.backups import Backups

    return Backups(asked.where).list()


def _verify(asked: argparse.Namespace) -> Any:
    from mms_sdk.client.backups import Backups

    if asked.where is not None:
        return Backups(asked.where).verify(asked.backup)
    if asked.backup:
        raise UsageProblem("--backup goes with the place where copies lie: mms verify WHERE --backup ID")
    return _Facts({"verified": _connect(asked).verify()})


def _restore(asked: argparse.Namespace) -> Any:
    from mms_sdk.client.backups import Backups

    made = Backups(asked.source).restore(_new_workspace(asked), backup=asked.backup, datasets=asked.datasets)
    return _Facts(made.status())


def _promote(asked: argparse.Namespace) -> Any:
    from mms_sdk.client.backups import Backups

    return _Facts(Backups(asked.source).promote(_new_workspace(asked), datasets=asked.datasets).status())


def _new_workspace(asked: argparse.Namespace) -> Path:
    if asked.url or not asked.workspace:
        raise UsageProblem(f"name the folder of the new workspace: mms {asked.verb} FROM --workspace FOLDER")
    return Path(asked.workspace)


def _doctor(asked: argparse.Namespace) -> Any:
    from mms_sdk.client.doctor import examine
    from mms_sdk.client.tables import Table
    from mms_sdk.settings import default_catalog, default_datasets, default_workspace

    folder = Path(asked.workspace).expanduser() if asked.workspace else default_workspace()
    rows = examine(folder, catalog=default_catalog(), datasets=default_datasets())
    return Table(rows, title="doctor", rows=rows)


def _version(asked: argparse.Namespace) -> Any:
    return {"version": mms_sdk.__version__} if asked.json else f"mms {mms_sdk.__version__}"


def _help(asked: argparse.Namespace) -> Any:
    if asked.about is None:
        return asked.parser.format_help().rstrip()
    known = asked.verbs.choices
    if asked.about not in known:
        raise UsageProblem(f"a verb is one of {', '.join(known)}; got {asked.about!r}")
    return known[asked.about].format_help().rstrip()


def _say(line: str) -> None:
    print(on_its_lines(line), flush=True)


def _in_notebook(asked: argparse.Namespace) -> bool:
    return str(asked.parser.prog).startswith("%")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 is expected; got {text!r}")
    return int(text)


def _whole(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"a whole number from 0 is expected; got {text!r}")
    return int(text)


def _above_zero(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"a number above 0 is expected; got {text!r}")


def _duration(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|h|d)", text)
    if found is None or not float(found[1]):
        raise argparse.ArgumentTypeError(f"a time is e.g. 30s, 15min, 1h or 1d; got {text!r}")
    return float(found[1]) * {"s": 1, "min": 60, "h": 3600, "d": 86400}[found[2]]


def _lifetime(text: str) -> float:
    return 0.0 if text == "never" else _duration(text)


def _ago(text: str) -> Any:
    if text.isdigit():
        return int(text)
    from datetime import UTC, datetime, timedelta

    return datetime.now(UTC) - timedelta(seconds=_duration(text))


def _hours(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"a number of hours from 0 is expected; got {text!r}")


def _mesh(text: str) -> dict[str, int]:
    try:
        return {axis: int(size) for axis, size in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"a mesh is e.g. data=2,fsdp=4; got {text!r}") from error


def _prices(text: str) -> dict[str, float]:
    try:
        return {name: float(price) for name, price in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"prices are e.g. h100=2.5,v5e=1.2; got {text!r}") from error


if __name__ == "__main__":
    sys.exit(main())
