"""What the commands print to: text as it is, for what a user wrote may look like Rich's markup."""

from rich.console import Console
from rich.status import Status
from rich.text import Text

console = Console(markup=False, emoji=False, highlight=False)
errors = Console(markup=False, emoji=False, highlight=False, stderr=True, soft_wrap=True)


def busy(what: str) -> Status:
    """A line that says what takes a while, for as long as it does."""
    return console.status(Text(what))
