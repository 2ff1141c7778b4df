"""Buckets on the S3 servers that tests start."""

from __future__ import annotations

import os
import secrets
from functools import cache
from typing import Any

import boto3
from botocore.config import Config


def make_bucket(endpoint: str) -> str:
    """The URL of a folder in a new bucket; credentials come from the environment."""
    bucket = f"mms-{secrets.token_hex(8)}"
    client = _client(endpoint, os.environ["AWS_ACCESS_KEY_ID"])
    try:
        client.create_bucket(Bucket=bucket)
    finally:
        client.close()  # its connections; it opens others when it is asked again
    return f"s3://{bucket}/team?endpoint={endpoint}&region=us-east-1"


@cache
def _client(endpoint: str, user: str) -> Any:
    """Made once for each server and user, because that reads all of S3's description."""
    # One attempt: a server that was just started answers or is broken.
    config = Config(retries={"max_attempts": 1})
    return boto3.Session().client("s3", endpoint_url=endpoint, region_name="us-east-1", config=config)
