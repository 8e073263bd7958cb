/* SPDX-License-Identifier: BSD-3-Clause */
/* What bindgen reads: nbdkit's plugin interface, from the system's package, and our own shim. */
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>
#include "nbd-shim.h"
