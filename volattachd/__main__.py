"""``python -m volattachd``: the daemon."""

import sys

from volattachd.daemon import main

sys.exit(main())
