"""``python -m iitkit``."""

import sys

from iitkit.cli import main

sys.exit(main())
