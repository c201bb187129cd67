"""(Stand-in until the branch `faults` is merged.)"""

import sys

from minidiff.machine import Parser  # noqa: F401


def run(script, main, argv):
    try:
        main(argv)
    except KeyboardInterrupt as stop:
        print(f"{script}: {stop or 'stopped'}", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"{script}: {error}", file=sys.stderr)
        return 2
    return 0
