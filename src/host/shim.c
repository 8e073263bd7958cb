/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdio.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "nbd-shim.h"

void
nbd_shim_error (const char *message)
{
  nbdkit_error ("%s", message);
}

void
nbd_shim_debug (const char *message)
{
  nbdkit_debug ("%s", message);
}

void
nbd_shim_print (const char *line)
{
  printf ("%s\n", line);
}
