"""P9: nobody without a token does anything; a token does what its role says, on every route there is."""

from __future__ import annotations

import re
from pathlib import Path

import psutil
import pytest
from fastapi import APIRouter
from service.conftest import Service
