"""Record: what one row of data says, whatever file and form it came in. The stages from here on know nothing else of the file."""

from dataclasses import dataclass

Message = dict[str, str]
"""`role` (system, user or assistant) and `content`."""


@dataclass(frozen=True, slots=True)
class Record:
    """A text, or a conversation in which at least one turn is the assistant's. `line` is where it begins in `file`, counted from 1."""

    file: str
    line: int
    text: str = ""
    messages: tuple[Message, ...] = ()
    group: str = ""
    """Rows of one group (an author, a video) stay on one side of the split."""
    label: str = ""
    """The class of a labelled text, which is also its last answer."""

    @property
    def asked(self) -> str:
        """What the user says, turn by turn."""
        return "\n".join(message["content"] for message in self.messages if message["role"] == "user")

    @property
    def answered(self) -> str:
        """What is learned: the assistant's turns, or the text."""
        return "\n".join(message["content"] for message in self.messages if message["role"] == "assistant") or self.text

    @property
    def prompt(self) -> str:
        """What stands before the last answer, for people: a question as it is, a conversation turn by turn with its roles."""
        last = max((place for place, message in enumerate(self.messages) if message["role"] == "assistant"), default=len(self.messages))
        turns = [message for message in self.messages[:last] if message["role"] != "system"]
        return turns[0]["content"] if len(turns) == 1 else "\n".join(f"{message['role']}: {message['content']}" for message in turns)

    @property
    def reference(self) -> str:
        """The last answer."""
        return next((message["content"] for message in reversed(self.messages) if message["role"] == "assistant"), "")
