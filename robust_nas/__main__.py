"""`python -m robust_nas` is the same as `robust-nas`."""

import contextlib
import os
import sys

if __name__ == "__main__":
    # The current folder, where Python looks for modules first: in a stranger's folder, his torch.py would run. Modules
    # there that the user names are found (registry.py, intake/loading.py).
    with contextlib.suppress(FileNotFoundError):
        if not sys.flags.safe_path and sys.path[0] == os.getcwd():
            del sys.path[0]
    from robust_nas.cli import main

    main()
