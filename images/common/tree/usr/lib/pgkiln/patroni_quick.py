"""Patroni's fixed waits in a planned change of leaders, cut short: most of its pause is spent in them.

What each wait is for is made sure of anyhow, by Patroni itself:

* The old leader looks once a second whether PostgreSQL has written its shutdown checkpoint, and when it has, waits another
  second before it asks the replicas whether one has received it. If none has, it keeps the leader key until PostgreSQL is
  down, as it always did. (PostgreSQL ends only after its replicas have confirmed all WAL.)
* A replica that is not to be the leader waits two seconds before it looks whom to follow. If the candidate has not taken
  the key by then, it looks again as soon as somebody has.
"""
import os
import sys
import time

# In this order: they import each other.
from patroni import postgresql
from patroni import ha

POLLING_INTERVAL = 0.1
# Function of ha.py that waits, and the longest it may, in seconds.
WAITS = {"on_shutdown": 0.1, "process_unhealthy_cluster": 0.7}


class Time:
    """The module `time` as ha.py sees it."""

    def __getattr__(self, name):
        return getattr(time, name)

    @staticmethod
    def sleep(seconds):
        waits = sys._getframe(1).f_code.co_name
        time.sleep(min(seconds, WAITS.get(waits, seconds)))


def apply():
    if os.environ.pop("PGKILN_QUICK_SWITCHOVER", None):
        postgresql.STOP_POLLING_INTERVAL = POLLING_INTERVAL
        ha.time = Time()
