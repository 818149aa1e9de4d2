"""What pydantic finds wrong with values that come from files, flags or the environment."""

import re

from pydantic import ValidationError

_KEYS = {"missing": "is missing", "unexpected_keyword_argument": "is unknown"}


def first_fault(error: ValidationError) -> tuple[str, str]:
    """Where the first fault lies, for example `engine.split`, and the rest of the sentence: what it must be, and is."""
    fault = error.errors(include_url=False)[0]
    place, kind, rule = ".".join(map(str, fault["loc"])), fault["type"], fault["msg"]
    if kind in _KEYS:
        return place, _KEYS[kind]
    if kind == "value_error":  # of a validator of ours
        return place, rule.removeprefix("Value error, ")
    rule = re.sub(r"^\w+ should", "must", rule.replace("Input is not", "must be"))
    rule = re.sub(r"(, unable to| for <class| after validation).*", "", rule)
    return place, f"{rule}, not {fault['input']!r}"
