# cython: language_level=3, boundscheck=False, wraparound=False
"""Connections: the account of many connections of one endpoint, in memory that the loop (loops/many.pyx) fills."""

import numpy as np

from libc.stdint cimport int32_t, int64_t

from cython_ext.core.trial import touched


cdef class Connections:
    """What went on each of an endpoint's connections; the endpoint makes it, and fills the table of functions.

    :param count: connections
    :raises ValueError: if there is none
    """

    def __init__(self, uint32_t count):
        if count < 1:
            raise ValueError("an endpoint has at least one connection")
        self.count = count

    def begin(self, uint64_t warmup, uint64_t messages, uint64_t total):
        """Take memory for a trial, its pages touched.

        :param warmup, messages: messages before the measured ones, and the measured ones
        :param total: all messages
        """
        cdef int32_t[::1] short_view
        cdef int64_t[::1] view
        self.warmup = warmup
        self.messages = messages
        self.arrays = {
            "by_message": touched(total, np.int32),
            "pending": touched(self.count, np.int64),
            "sent": touched(self.count, np.int64),
            "taken": touched(self.count, np.int64),
        }
        self.arrays["pending"].fill(FREE)
        short_view = self.arrays["by_message"]
        self.by_message = &short_view[0]
        view = self.arrays["pending"]
        self.pending = &view[0]
        view = self.arrays["sent"]
        self.sent_of = &view[0]
        view = self.arrays["taken"]
        self.taken_of = &view[0]

    @property
    def sent(self):
        """Messages that this end posted, warm-up and cool-down among them.

        :return: an int64 array of `count` numbers, by connection; it stays valid as long as anybody holds it
        """
        return self.arrays["sent"]

    @property
    def taken(self):
        """Messages that came, each counted once: a client's answers, late ones among them, a server's questions.

        :return: an int64 array of `count` numbers, by connection
        """
        return self.arrays["taken"]

    @property
    def connection(self):
        """On which connection each measured message went; of a client, for a server does not keep that.

        :return: an int64 array of as many numbers as there are measured messages, in their order
        """
        return self.arrays["by_message"][self.warmup:self.warmup + self.messages].astype(np.int64)

    def counts(self) -> dict:
        """What joins the trial's tally.

        :return: `strayed`, answers that came on another connection than their question: they are corrupt as well
        """
        return {"strayed": self.strayed}
