# SPDX-License-Identifier: MIT
"""The runtime edge: queues, device facts, kernel loading and launching through dpctl's C library and ctypes."""
