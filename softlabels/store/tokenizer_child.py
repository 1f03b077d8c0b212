"""The process in which a tokenizer or a chat template of unknown origin runs; `tokenizer_process.py` starts it.

It reads requests from its standard input and answers them on its standard output, each with 4 bytes of length before:
first the limits and the `tokenizer.json` or the template, then lists of ids or conversations, whose text it gives
back. It imports nothing of ours.
"""

import json
import resource
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

LENGTH = 4


def read(stream: BinaryIO) -> bytes | None:
    """A message; None: there are no more."""
    head = stream.read(LENGTH)
    return stream.read(int.from_bytes(head, "little")) if len(head) == LENGTH else None


def write(stream: BinaryIO, message: Any) -> None:
    """Send a message."""
    data = json.dumps(message).encode()
    stream.write(len(data).to_bytes(LENGTH, "little") + data)
    stream.flush()


def limit(memory: int, seconds: int) -> None:
    """Let this process end rather than take more; a system that knows no such limit has the parent's clock."""
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        try:
            resource.setrlimit(what, (most, most))
        except (OSError, ValueError):
            continue


def tokenizer() -> Callable[[str], Callable[[Any], str]]:
    """Makes, of a `tokenizer.json`, what gives the text of ids."""
    from tokenizers import Tokenizer

    def load(data: str) -> Callable[[Any], str]:
        loaded = Tokenizer.from_str(data)
        return lambda ids: str(loaded.decode(ids, skip_special_tokens=False))

    return load


def template() -> Callable[[str], Callable[[Any], str]]:
    """Makes, of a chat template and its variables, what gives the text of a conversation."""
    from transformers.utils.chat_template_utils import render_jinja_template

    def load(data: str) -> Callable[[Any], str]:
        source, variables = json.loads(data)

        def render(request: Any) -> str:
            messages, tools = request
            rendered = render_jinja_template(
                conversations=[messages],
                tools=tools or None,
                chat_template=source,
                add_generation_prompt=True,
                **variables,
            )
            return str(rendered[0][0])

        return render

    return load


def main() -> None:
    """Serve until there is nothing more to read."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    limits = json.loads(read(source) or b"{}")
    load = {"tokenizer": tokenizer, "template": template}[limits["kind"]]()
    limit(limits["memory"], limits["seconds"])
    try:
        text_of = load((read(source) or b"").decode())
        write(sink, {})
    except Exception as e:  # a bare Exception is what tokenizers raises
        write(sink, {"error": f"{e}"[:300]})
        return
    while (request := read(source)) is not None:
        try:
            write(sink, {"text": text_of(json.loads(request))})
        except Exception as e:  # a template is a program and may raise anything
            said = "asks for more memory than it may have" if isinstance(e, MemoryError) else f"{e}"
            write(sink, {"error": said[:300]})


if __name__ == "__main__":
    main()
