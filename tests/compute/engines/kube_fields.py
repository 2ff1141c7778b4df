"""Fields of KubeRay's resources, by their public reference (`ray.io/v1`, KubeRay 1.5.1 and later).

A pod template stands for one by Kubernetes' own schema. `TEXT`, `WHOLE`, `TRUTH` and `TEXTS` are what a field holds; a
dictionary is an object, a list with one element a list of such.
"""

from __future__ import annotations

from typing import Any

TEXT, WHOLE, TRUTH, TEXTS, POD_TEMPLATE = "text", "whole number", "truth", "texts by text", "pod template"

_HEAD = {
    "rayStartParams": TEXTS,
    "template": POD_TEMPLATE,
    "serviceType": TEXT,
    "enableIngress": TRUTH,
    "labels": TEXTS,
    "resources": TEXTS,
}
_WORKERS = {
    "groupName": TEXT,
    "replicas": WHOLE,
    "minReplicas": WHOLE,
    "maxReplicas": WHOLE,
    "numOfHosts": WHOLE,
    "idleTimeoutSeconds": WHOLE,
    "suspend": TRUTH,
    "rayStartParams": TEXTS,
    "template": POD_TEMPLATE,
    "labels": TEXTS,
    "resources": TEXTS,
}
CLUSTER_SPEC = {
    "rayVersion": TEXT,
    "suspend": TRUTH,
    "managedBy": TEXT,
    "enableInTreeAutoscaling": TRUTH,
    "authOptions": {"mode": TEXT, "secretName": TEXT},
    "headServiceAnnotations": TEXTS,
    "headGroupSpec": _HEAD,
    "workerGroupSpecs": [_WORKERS],
}
JOB_SPEC = {
    "entrypoint": TEXT,
    "submissionMode": TEXT,
    "backoffLimit": WHOLE,
    "activeDeadlineSeconds": WHOLE,
    "shutdownAfterJobFinishes": TRUTH,
    "ttlSecondsAfterFinished": WHOLE,
    "suspend": TRUTH,
    "jobId": TEXT,
    "metadata": TEXTS,
    "runtimeEnvYAML": TEXT,
    "entrypointNumCpus": WHOLE,
    "entrypointNumGpus": WHOLE,
    "entrypointResources": TEXT,
    "clusterSelector": TEXTS,
    "submitterPodTemplate": POD_TEMPLATE,
    "submitterConfig": {"backoffLimit": WHOLE},
    "rayClusterSpec": CLUSTER_SPEC,
}
_METADATA = {"name": TEXT, "namespace": TEXT, "labels": TEXTS, "annotations": TEXTS}
KINDS = {
    kind: {"apiVersion": TEXT, "kind": TEXT, "metadata": _METADATA, "spec": spec}
    for kind, spec in (("RayJob", JOB_SPEC), ("RayCluster", CLUSTER_SPEC))
}
NEEDED = {
    "RayJob": ("entrypoint", "rayClusterSpec.rayVersion", "rayClusterSpec.headGroupSpec.rayStartParams"),
    "RayCluster": ("rayVersion", "headGroupSpec.rayStartParams", "headGroupSpec.template"),
}


def misfits(found: Any, known: Any, at: str = "") -> list[str]:
    """What is in a manifest that KubeRay does not know, or not as this."""
    if isinstance(known, dict):
        if not isinstance(found, dict):
            return [f"{at} is no object"]
        return [
            each
            for name, value in found.items()
            for each in (misfits(value, known[name], f"{at}.{name}") if name in known else [f"{at}.{name} is unknown"])
        ]
    if isinstance(known, list):
        if not isinstance(found, list):
            return [f"{at} is no list"]
        return [each for number, value in enumerate(found) for each in misfits(value, known[0], f"{at}[{number}]")]
    fits = {
        TEXT: isinstance(found, str),
        WHOLE: type(found) is int and 0 <= found < 2**31,
        TRUTH: isinstance(found, bool),
        TEXTS: isinstance(found, dict) and all(isinstance(text, str) for text in [*found, *found.values()]),
        POD_TEMPLATE: isinstance(found, dict) and found.keys() <= {"metadata", "spec"} and "spec" in found,
    }
    return [] if fits[known] else [f"{at} is no {known}: {found!r}"]
