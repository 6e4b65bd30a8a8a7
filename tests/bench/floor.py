"""An empty raw tracepoint on sys_exit, until SIGINT; run by the system's Python, which has BCC.

Its argument is the directory of the header stub.
"""

import os
import signal
import sys

os.environ["BCC_KERNEL_SOURCE"] = sys.argv[1]

from bcc import BPF

signal.signal(signal.SIGINT, signal.SIG_DFL)
bpf = BPF(text=b"RAW_TRACEPOINT_PROBE(sys_exit) { return 0; }")
print("attached", flush=True)
signal.pause()
