"""Hosts that attach: the agent and its commands against real LIO and open-iscsi. `make test-agent` runs these."""
