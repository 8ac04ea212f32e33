"""Seconds that `import diffusers_erase` and `diffusers-erase --help` take, in turns.

python tests/benchmarks/startup.py

Each is a fresh process; the first round warms the disk and does not count.
"""

import argparse
import subprocess
import sys
import time
from statistics import median


CALLS = {
    "python": ["-c", "pass"],
    "import diffusers_erase": ["-c", "import diffusers_erase"],
    "import diffusers": ["-c", "import diffusers"],
    "import diffusers, diffusers_erase": ["-c", "import diffusers, diffusers_erase"],
    "diffusers-erase --help": ["-m", "diffusers_erase.cli", "--help"],
    "diffusers-erase edit --help": ["-m", "diffusers_erase.cli", "edit", "--help"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    taken: dict[str, list[float]] = {name: [] for name in CALLS}
    for turn in range(rounds + 1):
        for name, arguments in CALLS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
            if turn:
                taken[name].append(time.perf_counter() - started)
    base = taken["import diffusers"]
    print("| call | s, median | least | of `import diffusers` beside it |")
    print("| --- | ---: | ---: | ---: |")
    for name, spent in taken.items():
        ratio = median(a / b for a, b in zip(spent, base, strict=True))
        print(f"| `{name}` | {median(spent):.2f} | {min(spent):.2f} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
