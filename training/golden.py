"""Write the golden answers of the demo model, `src/tilewise/demo/golden.json`, for `tilewise doctor --golden`.

They are computed in float32 by torch's plain ops, for floats and for each rounding that an engine can be told to do.
Run it when the weights, the questions or the rounding change:

    python training/golden.py [FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tilewise.doctor.golden import FILE, compute_golden, write_golden


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?", default=FILE)
    file = parser.parse_args().file
    golden = compute_golden()
    write_golden(file, golden)
    for name, answers in golden.items():
        print(f"{name}: {', '.join(answer.text for answer in answers)}")


if __name__ == "__main__":
    main()
