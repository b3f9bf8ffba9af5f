# SPDX-License-Identifier: Apache-2.0
"""One epoch after another: scores, plans, the socket of the policies, reports and state."""
