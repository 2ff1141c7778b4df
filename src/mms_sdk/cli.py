"""`mms`, and the parser that `%mms` shares with it.

A command is a function of the parsed arguments that returns a value. The terminal prints the value, `--json` prints it
as JSON, a notebook shows it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mms_sdk.errors import InvalidRequest, MmsError

if TYPE_CHECKING:
    from mms_sdk.client.workspace import WorkspaceClient

Command = Callable[[argparse.Namespace], Any]


class UsageProblem(Exception):
    """The words of a command do not fit; the message says which and how they would."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageProblem(f"{message}\n{self.format_usage().strip()}\nmore: {self.prog} --help")


def make_parser(prog: str = "mms") -> argparse.ArgumentParser:
    """The whole command tree."""
    parser = _Parser(
        prog=prog, description="Massive Model as a Service: from a folder of data to a model that answers."
    )
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
    demo.add_argument("--epochs", type=_positive, default=40, help="passes over the training pictures, at most")

    data = verb("datasets", _datasets, "list, show, ingest and verify datasets", aliases=["data"])
    data.add_argument("action", nargs="?", choices=["list", "show", "ingest", "verify"], default="list")
    data.add_argument("name", nargs="?", help="dataset, e.g. flowers or flowers@7")
    data.add_argument("folder", nargs="?", help="for ingest: one sub-folder of pictures for each class")
    data.add_argument("--keep-all", action="store_true", help="for ingest: no cleaning; an unreadable file is an error")

    train = verb("train", _train, "train a picture classifier on a dataset and register it")
    train.add_argument("dataset", help="e.g. flowers or flowers@7")
    train.add_argument("--register", metavar="NAME", help="model to register it as; the dataset's name if left out")
    train.add_argument("--model", default="convnet", help="model family: convnet or mlp")
    train.add_argument("--size", type=_positive, help="resize pictures to SIZE×SIZE; needed where they differ")
    train.add_argument("--epochs", type=_positive, default=20)
    train.add_argument("--batch-size", type=_positive, default=128)
    train.add_argument("--learning-rate", type=float, default=3e-3)
    train.add_argument("--patience", type=_positive, default=6, help="epochs without a better val/loss before it stops")
    train.add_argument("--mesh", type=_mesh, default={"data": -1}, help="e.g. data=2,fsdp=4; -1 for the rest")
    train.add_argument("--seed", type=int, default=0)

    jobs = verb("jobs", _jobs, "list jobs, or show one")
    jobs.add_argument("job", nargs="?")
    jobs.add_argument("--limit", type=_positive, default=20)

    models = verb("models", _models, "list models, show one, or point an alias at a version")
    models.add_argument("model", nargs="?", help="e.g. flowers or flowers@3")
    models.add_argument("--alias", help="an alias for that version, e.g. champion")

    predict = verb("predict", _predict, "ranked classes of pictures; with --to, of a whole dataset or folder")
    predict.add_argument("model", help="e.g. flowers or flowers@champion; with --url, the deployment")
    predict.add_argument("inputs", nargs="+", metavar="INPUT", help="pictures; with --to a dataset or folder")
    predict.add_argument("--to", metavar="FILE", help="write a Parquet file with one row for each input")
    predict.add_argument("--top", type=_positive, default=3, help="classes to show")

    serve = verb("serve", _serve, "serve the workspace and its models over REST on this machine")
    serve.add_argument("models", nargs="*", metavar="MODEL", help="deployed under their names, e.g. flowers@champion")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8765)
    serve.add_argument("--source-root", action="append", default=[], metavar="FOLDER", help="ingests may read below it")

    verb("doctor", _doctor, "look at the installation, the devices and the workspace")
    verb("version", _version, "the version of MMS")
    helped = verb("help", _help, "this page, or that of a verb")
    helped.add_argument("about", nargs="?", metavar="VERB")
    parser.set_defaults(parser=parser, verbs=verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 1 for an error, 2 for words that do not fit, 130 when interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        asked = make_parser().parse_args(words or ["help"])
        value = asked.command(asked)
        if value is not None:
            print(json.dumps(to_json(value), indent=2) if asked.json else value, flush=True)
    except UsageProblem as problem:
        print(f"mms: {problem}", file=sys.stderr)
        return 2
    except MmsError as error:
        print(f"mms: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mms: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def to_json(value: Any) -> Any:
    """A command's value as JSON."""
    if isinstance(value, list):
        return [to_json(item) for item in value]
    record = getattr(value, "record", None) or getattr(value, "info", None) or value
    return record.model_dump(mode="json") if hasattr(record, "model_dump") else record


class _Facts(dict[str, Any]):
    """Names and values, one a line."""

    def __str__(self) -> str:
        width = max(len(name) for name in self)
        return "\n".join(f"{name.ljust(width)}  {value}" for name, value in self.items())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from mms_sdk import html

        return html.facts("MMS", self)


def _connect(asked: argparse.Namespace) -> WorkspaceClient:
    from mms_sdk.client.workspace import connect

    return connect(asked.url, workspace=asked.workspace)


def _status(asked: argparse.Namespace) -> Any:
    return _Facts(_connect(asked).status())


def _demo(asked: argparse.Namespace) -> Any:
    from mms_sdk.demo import run_demo

    if asked.url:
        raise InvalidRequest("the demo trains in this process, in a workspace folder; leave --url out")
    report = run_demo(
        _connect(asked), data=Path(asked.data) if asked.data else None, epochs=asked.epochs, quiet=asked.json
    )
    return report if asked.json else None


def _datasets(asked: argparse.Namespace) -> Any:
    if asked.action == "list":
        return _connect(asked).datasets.list()
    if asked.name is None or (asked.action == "ingest") != (asked.folder is not None):
        raise UsageProblem("usage: mms datasets [list | show NAME | ingest NAME FOLDER | verify NAME]")
    if asked.action == "ingest":
        return _ingest(asked)
    if asked.action == "verify":
        job = _connect(asked).datasets.verify(asked.name)
        return job if asked.json or _in_notebook(asked) else _Facts(job.result)
    dataset = _connect(asked).datasets.get(asked.name)
    return dataset if asked.json or _in_notebook(asked) else _Facts(dataset.facts())


def _ingest(asked: argparse.Namespace) -> Any:
    from mms_sdk.schema.dataset import DropDuplicates, DropOddSizes, DropUnreadable

    clean = () if asked.keep_all else (DropUnreadable(), DropDuplicates(), DropOddSizes())
    return _connect(asked).datasets.ingest(asked.name, asked.folder, clean=clean)


def _train(asked: argparse.Namespace) -> Any:
    import optax

    from mms_sdk.compute import models
    from mms_sdk.compute.data.preprocess import image
    from mms_sdk.compute.training.policies import EarlyStopping
    from mms_sdk.compute.training.trainer import Trainer
    from mms_sdk.schema.names import check_name

    workspace = _connect(asked)
    dataset = workspace.datasets.get(asked.dataset)
    name = check_name(asked.register or dataset.name, what="model")
    steps = [image.Resize(asked.size)] if asked.size else []
    trainer = Trainer(
        model=models.by_name(asked.model, num_classes=dataset.num_classes),
        optimizer=optax.adamw(asked.learning_rate),
        preprocess=[*steps, image.Normalize(), image.RandomShift(1)],
        mesh=asked.mesh,
        batch_size=asked.batch_size,
        epochs=asked.epochs,
        stop=EarlyStopping("val/loss", patience=asked.patience),
        seed=asked.seed,
    )
    result = trainer.fit(dataset)
    metrics = result.evaluate("test") if "test" in dataset.splits else {}
    return workspace.models.register(name, result.best, metrics=metrics)


def _jobs(asked: argparse.Namespace) -> Any:
    jobs = _connect(asked).jobs
    if asked.job is None:
        return jobs.list(asked.limit)
    job = jobs.get(asked.job)
    return job if asked.json or _in_notebook(asked) else _Facts(job.facts())


def _models(asked: argparse.Namespace) -> Any:
    models = _connect(asked).models
    if asked.model is None:
        return models.list()
    version = models.get(asked.model)
    if asked.alias:
        version = models.alias(version.model, asked.alias, version)
    return version if asked.json or _in_notebook(asked) else _Facts(version.facts())


def _predict(asked: argparse.Namespace) -> Any:
    from mms_sdk.schema.names import parse_model_ref

    workspace = _connect(asked)
    if asked.to:
        if len(asked.inputs) != 1:
            raise UsageProblem(f"--to takes one dataset or folder; got {len(asked.inputs)} inputs")
        return workspace.predict(asked.model, data=asked.inputs[0], to=asked.to)
    if workspace.embedded:
        name = parse_model_ref(asked.model).name
        deployment = workspace.deployments.create(name, model=asked.model, max_batch=1)
    else:
        deployment = workspace.deployments.get(asked.model)
    found = {picture: deployment.predict(picture, top=asked.top) for picture in asked.inputs}
    if asked.json:
        return {picture: prediction.model_dump(mode="json") for picture, prediction in found.items()}
    if _in_notebook(asked) and len(found) == 1:
        return next(iter(found.values()))
    told = {
        picture: [f"{label} {score:.1%}" for label, score in each.top(asked.top)] for picture, each in found.items()
    }
    return _Facts({picture: "  ".join(ranked) for picture, ranked in told.items()})


def _serve(asked: argparse.Namespace) -> Any:
    from mms_sdk.service.server import serve
    from mms_sdk.settings import default_workspace
    from mms_sdk.storage.workspace import Workspace

    if asked.url:
        raise InvalidRequest("mms serve is the server; leave --url out")
    workspace = Workspace(Path(asked.workspace) if asked.workspace else default_workspace())
    roots = [Path(root).expanduser().absolute() for root in asked.source_root]
    serve(workspace, host=asked.host, port=asked.port, models=asked.models, source_roots=roots, say=_say)


def _doctor(asked: argparse.Namespace) -> Any:
    from mms_sdk.client.doctor import examine
    from mms_sdk.client.tables import Table
    from mms_sdk.settings import default_workspace

    rows = examine(Path(asked.workspace).expanduser() if asked.workspace else default_workspace())
    return Table(rows, title="doctor", rows=rows)


def _version(asked: argparse.Namespace) -> Any:
    import mms_sdk

    return {"version": mms_sdk.__version__} if asked.json else f"mms {mms_sdk.__version__}"


def _help(asked: argparse.Namespace) -> Any:
    if asked.about is None:
        return asked.parser.format_help().rstrip()
    known = asked.verbs.choices
    if asked.about not in known:
        raise UsageProblem(f"a verb is one of {', '.join(known)}; got {asked.about!r}")
    return known[asked.about].format_help().rstrip()


def _say(line: str) -> None:
    print(line, flush=True)


def _in_notebook(asked: argparse.Namespace) -> bool:
    return str(asked.parser.prog).startswith("%")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 is expected; got {text!r}")
    return int(text)


def _mesh(text: str) -> dict[str, int]:
    try:
        return {axis: int(size) for axis, size in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"a mesh is e.g. data=2,fsdp=4; got {text!r}") from error


if __name__ == "__main__":
    sys.exit(main())
