"""Buckets on the S3 servers that tests start."""

from __future__ import annotations

import secrets

import boto3
from botocore.config import Config


def make_bucket(endpoint: str) -> str:
    """The URL of a folder in a new bucket; credentials come from the environment."""
    bucket = f"mms-{secrets.token_hex(8)}"
    # One attempt: a server that was just started answers or is broken.
    client = boto3.Session().client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", config=Config(retries={"max_attempts": 1})
    )
    try:
        client.create_bucket(Bucket=bucket)
    finally:
        client.close()
    return f"s3://{bucket}/team?endpoint={endpoint}&region=us-east-1"
