"""``python -m rbee.worker``: how the hive starts a worker, never from PATH."""

import sys

from rbee.worker.main import main

sys.exit(main())
