"""`python -m dray.cli`."""

import sys

from dray.cli.main import main

sys.exit(main())
