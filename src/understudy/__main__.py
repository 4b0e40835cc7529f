"""``python -m understudy``: the same as the ``understudy`` command."""

import sys

from understudy.main import main

sys.exit(main())
