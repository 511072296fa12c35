#!/usr/bin/python3
"""The daemon, with the two libraries that Debian does not have in a place of their own."""

import sys

sys.path.append("/usr/share/volattachd/vendor")

from volattachd.daemon import main

sys.exit(main())
