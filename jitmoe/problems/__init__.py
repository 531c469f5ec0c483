# SPDX-License-Identifier: MIT
"""What is asked of each op: frozen values of sizes, dtypes, layouts and options, without tensors."""
