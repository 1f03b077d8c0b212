"""The process in which a tokenizer of unknown origin is loaded and asked; `tokenizer_process.py` starts it.

It reads requests from its standard input and answers them on its standard output, each with 4 bytes of length before:
first the limits and the `tokenizer.json`, then lists of ids, whose text it gives back. It imports nothing of ours.
"""

import json
import resource
import sys
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


def main() -> None:
    """Serve until there is nothing more to read."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    limits = json.loads(read(source) or b"{}")
    from tokenizers import Tokenizer

    limit(limits["memory"], limits["seconds"])
    try:
        tokenizer = Tokenizer.from_str((read(source) or b"").decode())
        write(sink, {})
    except Exception as e:  # a bare Exception is what tokenizers raises
        write(sink, {"error": f"{e}"[:300]})
        return
    while (request := read(source)) is not None:
        write(sink, {"text": tokenizer.decode(json.loads(request), skip_special_tokens=False)})


if __name__ == "__main__":
    main()
