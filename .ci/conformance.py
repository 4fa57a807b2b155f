"""What schemathesis cannot know by itself: `SCHEMATHESIS_HOOKS=.ci/conformance.py`."""

import json
import re

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def lines(ctx, value):
    """A batch: each generated value is its only line."""
    if isinstance(value, bytes):
        return value
    return (json.dumps(value) + "\n").encode()


@schemathesis.deserializer("application/x-ndjson")
def first_line(ctx, response):
    """The schema describes one line, and all of them look alike."""
    return json.loads(response.content.split(b"\n", 1)[0] or b"null")


UNITS = {"ms": 1, "s": 1000}
FLAGS = ("all", "count_only", "keys", "keys_only", "prev", "redirect", "verbose")


@schemathesis.hook
def filter_case(ctx, case):
    """Left out is what is right and yet looks wrong."""
    query = case.query or {}
    # A replica waits for a revision as long as it is asked to, and says 503 then.
    if "min_revision" in query and query.get("consistency") == "stale":
        return False
    # Who gives the server a few milliseconds is told 503 or 504.
    given = re.fullmatch("([0-9]+) *(ms|s)", str(query.get("timeout")))
    if given and int(given[1]) * UNITS[given[2]] < 2000:
        return False
    # `?verbose` is `?verbose=true`.
    return not any(query.get(flag) == "" for flag in FLAGS)


@schemathesis.hook
def before_call(ctx, case, kwargs):
    """Long polls and locks that somebody holds answer in time for the next case."""
    headers = case.headers or {}
    for name in list(headers):
        if name.lower() == "prefer":
            headers[name] = "wait=0"
