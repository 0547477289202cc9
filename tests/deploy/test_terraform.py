"""What a reader of every block would look for. `make check-deploy` has Terraform itself validate and test the tree."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.conftest import ROOT

TREE = ROOT / "deploy/terraform"
FILES = sorted(path for path in TREE.rglob("*.tf") if ".terraform" not in path.parts)
GLOBAL = re.compile(r"aws_(iam_\w+|caller_identity|partition)$")
"""They have no Region."""
FLAGS = re.MULTILINE | re.DOTALL


def blocks(text: str) -> Iterator[tuple[str, str, str]]:
    """Every top-level resource and data block: its type, name and text, as `terraform fmt` lays them out."""
    yield from re.findall(r'^(?:resource|data) "(\w+)" "(\w+)" \{\n(.*?)^\}', text, FLAGS)
    for kind, name in re.findall(r'^(?:resource|data) "(\w+)" "(\w+)" \{\}$', text, FLAGS):
        yield kind, name, ""


def without_region(text: str) -> list[str]:
    """Blocks that would land in the provider's Region, whatever was meant; and global ones that name a Region."""
    return [
        f"{kind}.{name}"
        for kind, name, body in blocks(text)
        if kind.startswith("aws_") and bool(re.search(r"^  region\s+=", body, re.MULTILINE)) == bool(GLOBAL.match(kind))
    ]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(TREE)) for path in FILES])
def test_every_block_says_its_region_unless_it_is_global(path: Path) -> None:
    assert without_region(path.read_text()) == []


def test_a_block_without_region_is_found() -> None:
    forgotten = 'resource "aws_sqs_queue" "q" {\n  name = "q"\n}\ndata "aws_caller_identity" "this" {}\n'
    assert without_region(forgotten) == ["aws_sqs_queue.q"]
    assert without_region('resource "aws_iam_role" "r" {\n  region = "x"\n}\n') == ["aws_iam_role.r"]


def test_something_is_looked_at() -> None:
    seen = [kind for path in FILES for kind, _, _ in blocks(path.read_text())]
    assert len(seen) > 50
    assert len(seen) == sum(len(re.findall(r'^(?:resource|data) "', path.read_text(), re.MULTILINE)) for path in FILES)


def test_modules_leave_the_provider_to_the_caller() -> None:
    configure = {path for path in FILES if re.search(r'^provider "', path.read_text(), FLAGS)}
    assert configure
    assert all(TREE / "examples" in path.parents for path in configure)


@pytest.mark.parametrize("kind", ["variable", "output"])
def test_every_variable_and_output_is_described(kind: str) -> None:
    for path in FILES:
        for name, body in re.findall(rf'^{kind} "(\w+)" \{{(.*?)^\}}', path.read_text(), FLAGS):
            assert re.search(r"^  description\s+= ", body, re.MULTILINE), f"{path}: {name}"
            assert kind == "output" or re.search(r"^  type\s+= ", body, re.MULTILINE), f"{path}: {name}"


def test_every_module_root_and_example_has_tests() -> None:
    for folder in {path.parent for path in FILES}:
        assert list((folder / "tests").glob("*.tftest.hcl")), folder


def test_no_lock_file_and_no_state_is_kept() -> None:
    kept = [path for path in TREE.rglob("*") if "states" not in path.parts]
    assert [path for path in kept if path.name == ".terraform.lock.hcl" or ".tfstate" in path.name] == []


SERVICE = (TREE / "modules/service/main.tf").read_text()
ACTIONS = {
    "receive_message": "sqs:ReceiveMessage",
    "send_message_batch": "sqs:SendMessage",
    "delete_message_batch": "sqs:DeleteMessage",
    "change_message_visibility_batch": "sqs:ChangeMessageVisibility",
    "get_queue_attributes": "sqs:GetQueueAttributes",
    "get_queue_url": "sqs:GetQueueUrl",
    "get_item": "dynamodb:GetItem",
    "batch_get_item": "dynamodb:BatchGetItem",
    "put_item": "dynamodb:PutItem",
    "update_item": "dynamodb:UpdateItem",
    "describe_table": "dynamodb:DescribeTable",  # `dispatcher check`, run as a task
    "describe_time_to_live": "dynamodb:DescribeTimeToLive",
}


def test_every_call_that_the_daemon_makes_is_allowed() -> None:
    """What the policies say exactly is in the module's own tests; here: no call of the code was forgotten."""
    sources = [path.read_text() for path in (ROOT / "dispatcher").rglob("*.py") if path.name != "provision.py"]
    names = {name for text in sources for name in re.findall(r'"([a-z]+_[a-z_]+)"', text)}
    verbs = (
        "receive_",
        "send_message",
        "delete_message",
        "change_message",
        "get_",
        "batch_",
        "put_",
        "update_item",
        "describe_",
    )
    called = {name for name in names if name.startswith(verbs)} - {"batch_execute_statement"}
    assert called == set(ACTIONS)
    granted = (TREE / "modules/fleet/tests/fleet.tftest.hcl").read_text()
    assert {action for action in ACTIONS.values() if action not in granted} == set()
    statements = {
        word for text in sources for word in re.findall(r"[\"'](INSERT INTO|UPDATE|SELECT|DELETE FROM) ", text)
    }
    assert statements == {"INSERT INTO", "UPDATE"}  # the two PartiQL actions that are granted


def test_scaling_is_not_undone_and_tasks_do_not_start_without_rights() -> None:
    service = SERVICE[SERVICE.index('resource "aws_ecs_service"') :]
    service = service[: service.index("\n}\n")]
    assert "ignore_changes = [desired_count]" in service
    assert "depends_on = [aws_iam_role_policy.task, aws_iam_role_policy.execution" in service
    assert "task_definition]" not in service


def test_private_subnets_go_out_by_nat() -> None:
    out = (TREE / "modules/network/main.tf").read_text().split('resource "aws_route" "out" {')[1].split("\n}\n")[0]
    assert re.search(r"^  nat_gateway_id ", out, re.MULTILINE)
    assert "gateway_id  " not in out.replace("nat_gateway_id", "")


def test_every_target_in_the_documentation_is_there() -> None:
    """A target that matches nothing is no error to Terraform: it says "no changes"."""
    for page in (ROOT / "docs").rglob("*.md"):
        for target in re.findall(r"-target='?([\w.]+)", page.read_text()):
            names = re.findall(r"module\.(\w+)", target)
            assert names[:1] == ["dispatcher"], f"{page.name}: {target}: the examples call the root dispatcher"
            assert all(f'module "{name}"' in (TREE / "main.tf").read_text() for name in names[1:]), target
