from __future__ import annotations

import pytest
from pydantic import ValidationError

from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.job import JobSpec
from mms_sdk.schema.requirements import check_requirements


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ("einops", "einops"),
        (" Ein_Ops [b,a]  >= 0.8 , <1 ", "ein-ops[a,b]<1,>=0.8"),
        ("einops>=0.8; python_version < '3.13'", 'einops>=0.8; python_version < "3.13"'),
        ("einops @ https://example.org/e-1.0-py3-none-any.whl", "einops@ https://example.org/e-1.0-py3-none-any.whl"),
        ("e @ git+https://example.org/e.git@v1", "e@ git+https://example.org/e.git@v1"),
    ],
)
def test_a_requirement_is_kept_as_its_spellings_are_compared(asked: str, kept: str) -> None:
    (found,) = check_requirements([asked])
    assert found.replace(" @ ", "@ ") == kept
    assert check_requirements([found]) == (found,)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("", "e.g. 'einops>=0.8'; got ''"),
        ("einops >= ", "got 'einops >= '"),
        ("einops==0.8 --hash=sha256:00", "got 'einops==0.8 --hash"),
        ("--proxy=https://me:hidden@example.org", "options are settings of pip, and stand in its configuration file"),
        ("-r requirements.txt", "options are settings of pip"),
        ("-e .", "options are settings of pip"),
        ("./wheel.whl", "name the folder of your own wheels in pip's configuration file"),
        ("/tmp/wheel-1.0-py3-none-any.whl", "name the folder of your own wheels"),
        ("https://me:hidden@example.org/a.whl", "got 'https'"),
        ("a @ https://me:hidden@example.org/a.whl", "the URL of a may have one; put it into ~/.netrc"),
        ("a @ https://hidden@example.org/a.whl", "holds no password"),
        ("a @ https://example.org/a.whl?token=hidden", "holds no password"),
        ("a @ file:///hidden/a.whl", "begins with 'file'"),
        ("a @ http://example.org/hidden.whl", "begins with 'http', and not with one of https, git.https"),
        ("a @ git+ssh://example.org/hidden", "begins with 'git.ssh'"),
        ("a\nb", "cannot be printed"),
        ("a" * 501, "it has 501 signs"),
    ],
)
def test_what_is_no_requirement_is_refused_without_what_may_be_a_password(asked: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as refused:
        check_requirements([asked])
    assert "hidden" not in str(refused.value)
    with pytest.raises(ValidationError, match="requirement"):
        JobSpec(bundle="0" * 64, entrypoint="a.py", requirements=(asked,))
