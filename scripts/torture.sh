#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Random writers before servers whose cache dies with them, and which are killed again and again: one of ours that
# leaves a random part behind, nbdkit's cache filter in write-back mode, and fio as the client. What was
# acknowledged must be there in the end. Each way to a server has its test: plain, TLS, shared, two clients,
# connections=4, command=.
#
#     scripts/torture.sh
#     KILLS=300            deaths of the server in each test; with command=, 50 at most: a start takes 6 seconds
#     TORTURE_SEED=N       the requests and the deaths of a test that has failed, which has printed N
set -euo pipefail
cd "$(dirname "$0")/.."

export KILLS=${KILLS:-300}
cargo test --locked --test survive_torture --test survive_writeback
# The other programs have no use for many deaths: what they copy is small.
cargo test --locked --test survive_programs fio_
