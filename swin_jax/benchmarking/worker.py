"""Our side of a contest: python -m swin_jax.benchmarking.worker '{"mode": "train", "model": ...}', see `contest`."""

import json
import sys

import jax

from swin_jax.benchmarking.contest import serve
from swin_jax.benchmarking.models import Work, compile_work
from swin_jax.host_memory import keep_freed_memory


def main() -> None:
    work = Work(**json.loads(sys.argv[1]))

    def start():
        compiled = compile_work(work)

        def run(calls: int) -> None:
            for _ in range(calls):
                jax.block_until_ready(compiled.program.run())

        run(1)
        return run

    serve(start, {"version": f"jax {jax.__version__}"})


if __name__ == "__main__":
    keep_freed_memory()
    main()
