"""A seeded producer: requests as clients make them, with duplicates and bad ones among them."""

import json
from dataclasses import dataclass
from random import Random

DUPLICATES = 0.05  # of all messages: the same request once more, as a client that retries would send it
BAD = 0.025  # of all messages: bodies that no Region could serve

_MODELS = ("gpt-l-7b", "gpt-l-70b", "sd-xl")
_PRIORITIES = ("high", "normal", "normal", "normal", "low")


@dataclass(frozen=True, slots=True)
class Submission:
    """One message to send. `request_id` is None for a bad one."""

    body: str
    request_id: str | None


def request(random: Random, topic: str | None = None) -> dict[str, object]:
    """Return one valid request, whose client is told by `topic`."""
    number = f"{random.getrandbits(64):016x}"
    return {
        "request_id": f"req-{number}",
        "model_name": random.choice(_MODELS),
        "input_data_url": f"s3://inference-inputs/{number}.json",
        **({"callback_sns_topic": topic} if topic else {}),
        "priority": random.choice(_PRIORITIES),
        "timestamp": "2025-12-02T10:23:00Z",
        "metadata": {"user_id": f"user{random.randrange(40)}", "session_id": f"session{random.randrange(400)}"},
    }


def traffic(messages: int, seed: int, topic: str | None = None) -> list[Submission]:
    """Return `messages` submissions: most of them new requests, some duplicates of earlier ones, some bad.

    `topic`: where the clients want to be told; None: nowhere.
    """
    random = Random(seed)
    sent: list[Submission] = []
    valid: list[Submission] = []
    for _ in range(messages):
        draw = random.random()
        if draw < DUPLICATES and valid:
            sent.append(random.choice(valid[-200:]))
        elif draw < DUPLICATES + BAD:
            sent.append(Submission(_bad(random, topic), None))
        else:
            fields = request(random, topic)
            fresh = Submission(json.dumps(fields), str(fields["request_id"]))
            valid.append(fresh)
            sent.append(fresh)
    return sent


def _bad(random: Random, topic: str | None) -> str:
    fields = request(random, topic)
    match random.randrange(4):
        case 0:
            return json.dumps(fields)[: random.randrange(5, 60)]
        case 1:
            del fields["request_id"]
        case 2:
            fields["input_data_url"] = "http://example.org/input.json"
        case _:
            fields["priority"] = "urgent"
    return json.dumps(fields)
