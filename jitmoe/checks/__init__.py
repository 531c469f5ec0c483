# SPDX-License-Identifier: MIT
"""What the self-check of each op computes and expects: one module per op, see ``selfcheck.Check``."""
