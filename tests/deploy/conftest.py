"""An AWS account that knows the project pets, and the verbs of deploy/endpoint.py in this process."""

import pytest

import endpoint
import fake_aws as aws
import role
import upload
from fake_aws import build


@pytest.fixture
def cloud(monkeypatch):
    """This process's AWS account, whose containers answer rightly."""
    with aws.account(monkeypatch) as cloud:
        cloud.answer = aws.correct_container
        yield cloud


@pytest.fixture
def run_verb(cloud, tmp_path, capsys):
    """deploy/endpoint.py's verbs, after the roles were created and the archive was uploaded.

    `deploy` uploads the archive first, as `invoke deploy` does. Returns the output.
    """
    folder = tmp_path / "pets"
    build(folder)
    paths = ["--archive", str(folder / "model.tar.gz"), "--out", str(folder / "uploaded.json")]

    def upload_archive():
        assert upload.main([*paths, "--project", "pets"]) == 0

    def run_verb(verb, *words, code=0):
        if verb == "deploy":
            upload_archive()
        capsys.readouterr()
        done = endpoint.main([verb, "--project", "pets", "--build", str(folder), *words])
        said = capsys.readouterr()
        assert done == code, said.out + said.err
        assert "Traceback" not in said.err
        return said.out + said.err

    def package():
        assert role.main(["--project", "pets", "--create"]) == 0
        upload_archive()

    aws.prepare(cloud, "role and archive", package, folder)
    run_verb.folder = folder
    return run_verb
