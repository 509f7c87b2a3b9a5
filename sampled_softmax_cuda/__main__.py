"""`python -m sampled_softmax_cuda` prints versions, what was compiled and what is in use."""

from ._info import build_info, format_info

if __name__ == "__main__":
    print(format_info(build_info()))
