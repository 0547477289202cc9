"""Deliberate bugs, each of which a test must find. `make mutants` tries them."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Bug:
    """`before` stands once in `file`, and `after` in its place is the bug. `tests`: who should find it."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]

    def stands(self, root: Path = ROOT) -> bool:
        return (root / self.file).read_text(encoding="utf-8").count(self.before) == 1


LEDGER, PIPELINE, CLAIMS = "dispatcher/aws/ledger.py", "dispatcher/pipeline.py", "dispatcher/policy/claims.py"
CONTRACT, PATH, SEEDS = (
    "tests/contracts/test_ledger_contract.py",
    "tests/loops/test_path.py",
    "tests/world/test_seeds.py",
)

BUGS = (
    Bug(
        "drop the owner condition",
        LEDGER,
        'condition = "#owner = :owner AND #state <> :dispatched"',
        'condition = "(#owner = :owner OR #owner <> :owner) AND #state <> :dispatched"',
        (CONTRACT,),
    ),
    Bug(
        "delete before confirm",
        PIPELINE,
        "                        await self._confirm(flight, state)\n"
        "                        await self._acknowledge(flight)\n",
        "                        await self._acknowledge(flight)\n"
        "                        await self._confirm(flight, state)\n",
        (PATH, SEEDS),
    ),
    Bug(
        "delete before confirm, together",
        PIPELINE,
        "        confirmed = await self._confirm_all(sent, part)\n"
        "        await self._acknowledge_all(confirmed, part)\n",
        "        await self._acknowledge_all([flight for flight, _, _ in sent], part)\n"
        "        await self._confirm_all(sent, part)\n",
        (PATH, SEEDS),
    ),
    Bug(
        "send a claim that was refused together with others",
        PIPELINE,
        "            elif not answer:\n                part(flight, Taken(choice))\n",
        "            elif not answer:\n                claimed.append((flight, message, claim))\n",
        (PATH, SEEDS),
    ),
    Bug(
        "treat unknown depth as zero",
        "dispatcher/aws/queues.py",
        "(int(counts[name]) for name in _DEPTHS)",
        '(int(counts.get(name, "0")) for name in _DEPTHS)',
        ("tests/contracts/test_answers.py", "tests/unit"),
    ),
    Bug(
        "ignore Failed",
        "dispatcher/aws/faults.py",
        'for entry in filter(None, answer.get("Failed") or []):',
        'for entry in answer.get("Nothing") or []:',
        ("tests/unit/test_faults.py",),
    ),
    Bug(
        "cancel the poll on drain",
        "dispatcher/loops/intake.py",
        "                await self.lifecycle.until_draining()\n",
        "                await self.lifecycle.until_draining()\n"
        "                for poll in polls.tasks:\n"
        "                    poll.cancel()\n",
        ("tests/loops/test_intake.py",),
    ),
    Bug(
        "lease longer than visibility",
        PIPELINE,
        "return min(self.terms.lease_s, flight.visible_until - _now() - self.terms.margin_s)",
        "return max(self.terms.lease_s, flight.visible_until - _now() - self.terms.margin_s)",
        (PATH,),
    ),
    Bug(
        "confirm without token",
        LEDGER,
        'ConditionExpression="#owner = :owner",',
        'ConditionExpression="#owner = :owner OR #owner <> :owner",',
        (CONTRACT,),
    ),
    Bug(
        "retry the whole batch",
        "dispatcher/aws/regional.py",
        "        return answers\n\n\ndef _size_of",
        "        failed = [answer for answer in answers if isinstance(answer, Exception)]\n"
        "        return failed[:1] * len(answers) if failed else answers\n\n\ndef _size_of",
        ("tests/contracts/test_queue_contract.py", SEEDS),
    ),
    Bug(
        "count held as duplicate",
        PIPELINE,
        "                            await self._hide(flight, until)\n"
        "                            return Outcome.HELD\n",
        "                            await self._acknowledge(flight)\n"
        "                            return Outcome.DUPLICATE\n",
        (PATH, SEEDS),
    ),
    Bug(
        "ignore expires_at",
        CLAIMS,
        "forgotten = old.expires_at <= now",
        "forgotten = False",
        ("tests/unit/test_claims.py", CONTRACT),
    ),
    # and some that only a whole dispatcher in bad weather shows
    Bug(
        "release after an ambiguous send",
        PIPELINE,
        "        flight.step = Step.SENDING\n\n    async def _until_answered",
        "\n    async def _until_answered",
        (PATH,),
    ),
    Bug(
        "take half of the answers for all of them",
        LEDGER,
        "if len(responses) != len(statements):",
        "if len(responses) > len(statements):",
        ("tests/contracts/test_answers.py",),
    ),
    # of the connections
    Bug(
        "call a send that broke off never made",
        "dispatcher/aws/posts.py",
        "return EndpointConnectionError(endpoint_url=url, error=fault)",
        "return ConnectTimeoutError(endpoint_url=url, error=fault)",
        ("tests/contracts/test_lean.py",),
    ),
    Bug(
        "read an answer to nobody as the next one's",
        "dispatcher/aws/posts.py",
        "if connection.protocol is None or not connection.protocol.should_close:",
        "if connection.protocol is None or connection.protocol.should_close or connection:",
        ("tests/contracts/test_posts.py",),
    ),
    Bug(
        "trust any host",
        "dispatcher/aws/posts.py",
        "context.check_hostname = True",
        "context.check_hostname = False",
        ("tests/contracts/test_tls.py",),
    ),
)
