"""``python -m iitkit.cli``."""

import sys

from iitkit.cli import main

sys.exit(main())
