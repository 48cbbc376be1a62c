"""Names of tools as models write them."""

import re

from llmctl.engine.chat.parsing.text_source import UnexpectedTextError

NAME = re.compile(r"[\w.:/-]{1,128}")


def check_name(name: str) -> str:
    """Return the name of a tool.

    Raises:
        UnexpectedTextError: it is not one.
    """
    if NAME.fullmatch(name) is None:
        raise UnexpectedTextError
    return name
