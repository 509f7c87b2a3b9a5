"""`python -m sampled_softmax_cuda` prints versions, what was compiled and what is in use.

python -m sampled_softmax_cuda --self-check   runs all kernels of all devices on tiny problems
"""

import argparse
import sys

from ._info import build_info, format_info
from ._self_check import HOW_TO_REPORT, self_check


def main() -> None:
    options = argparse.ArgumentParser(
        prog="python -m sampled_softmax_cuda",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument(
        "--self-check",
        action="store_true",
        help="compare the kernels of the CPU and of each GPU with the reference; exits with 1 if"
        " any differs",
    )
    if not options.parse_args().self_check:
        print(format_info(build_info()))
        return
    all_right = True
    for line, right in self_check():
        print(line, flush=True)
        all_right = all_right and right
    if not all_right:
        print(HOW_TO_REPORT)
        sys.exit(1)


if __name__ == "__main__":
    main()
