"""What holds for the whole suite."""

import signal

# A shell starts a background job with SIGINT ignored, and the job's children inherit that: the tests that press Ctrl-C
# would press in vain. With a handler here, every process that a test starts has the default again.
signal.signal(signal.SIGINT, signal.default_int_handler)
