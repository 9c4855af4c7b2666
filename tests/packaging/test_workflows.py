"""The workflows run only actions pinned by commit, with few rights and without stored credentials."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from support.paths import ROOT

WORKFLOWS = {path.name: path.read_text() for path in (ROOT / ".github/workflows").iterdir()}
PARSED: dict[str, dict[str, Any]] = {name: yaml.safe_load(text) for name, text in WORKFLOWS.items()}

#: An action at a commit, with its version as a comment, or a workflow of this repository at the same commit.
PINNED = re.compile(r"[\w-]+(/[\w.-]+)+@[0-9a-f]{40} # v\d+\.\d+\.\d+|\./\.github/workflows/[\w-]+\.yml")


def test_the_ci_and_the_release_are_workflows():
    assert sorted(WORKFLOWS) == ["ci.yml", "release.yml"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_action_is_pinned_by_its_commit(name):
    used = re.findall(r"^\s*(?:- )?uses:\s*(.+?)\s*$", WORKFLOWS[name], re.MULTILINE)
    assert len(used) == sum(
        ("uses" in each) for job in PARSED[name]["jobs"].values() for each in [job, *_steps(job)]
    )
    assert used
    for each in used:
        assert PINNED.fullmatch(each), each


def test_an_action_has_the_same_commit_everywhere():
    found = set(re.findall(r"uses:\s*([\w./-]+)@(\w+ # \S+)", "".join(WORKFLOWS.values())))
    assert len({action for action, _ in found}) == len(found), sorted(found)


def test_a_checkout_keeps_no_credentials():
    steps = [step for each in PARSED.values() for job in each["jobs"].values() for step in _steps(job)]
    checkouts = [step for step in steps if step.get("uses", "").startswith("actions/checkout@")]
    assert checkouts
    for step in checkouts:
        assert step.get("with", {}).get("persist-credentials") is False


@pytest.mark.parametrize("name", WORKFLOWS)
def test_no_workflow_uses_a_stored_credential(name):
    assert not re.search(r"secrets\.|password:|api[-_]token", WORKFLOWS[name], re.IGNORECASE)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_no_script_contains_text_of_an_event(name):
    # A title or a branch name in a script would be run as a part of it.
    for job in PARSED[name]["jobs"].values():
        for step in _steps(job):
            assert "${{" not in step.get("run", "")


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_of_a_fork_gets_no_right_to_write(name):
    triggers = PARSED[name][True]  # YAML 1.1 reads the key `on` as true
    assert not {"pull_request_target", "workflow_run", "issue_comment"} & set(triggers)
    if "pull_request" in triggers:
        assert PARSED[name]["permissions"] == {"contents": "read"}
        assert not any("permissions" in job for job in PARSED[name]["jobs"].values())


def test_only_the_publish_job_can_publish_and_it_runs_no_code_of_the_repository():
    release = PARSED["release.yml"]
    assert release["permissions"] == {}
    rights = {name: job["permissions"] for name, job in release["jobs"].items()}
    assert rights == {
        "test": {"contents": "read"},
        "build": {"contents": "read"},
        "publish": {"id-token": "write", "attestations": "write"},
        "release": {"contents": "write"},
    }
    publish = release["jobs"]["publish"]
    assert publish["environment"] == "release"
    assert [step["uses"].partition("@")[0] for step in publish["steps"]] == [
        "actions/download-artifact",
        "actions/download-artifact",
        "actions/attest-build-provenance",
        "actions/attest-sbom",
        "pypa/gh-action-pypi-publish",
    ]
    assert not any("checkout" in step.get("uses", "") for step in _steps(release["jobs"]["release"]))


def test_a_release_is_tested_and_built_before_it_is_published():
    jobs = PARSED["release.yml"]["jobs"]
    assert jobs["test"]["uses"] == "./.github/workflows/ci.yml"
    assert [jobs[name]["needs"] for name in ("build", "publish", "release")] == ["test", "build", "publish"]


def test_dependabot_watches_the_actions_and_the_packages():
    updates = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())["updates"]
    assert {each["package-ecosystem"] for each in updates} == {"github-actions", "pip"}


def _steps(job: dict[str, Any]) -> list[dict[str, Any]]:
    return job.get("steps", [])
